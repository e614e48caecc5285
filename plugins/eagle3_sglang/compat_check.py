"""Whether the SGLang that runs has the names and signatures the plugin was written for; asked before they are imported."""

import importlib
import inspect
from typing import Any, NamedTuple

from eagle3_serving.notice import in_a_line

# read in and run on the first and the last; the others read only
VERSIONS = ("0.5.20", "0.5.21", "0.5.22", "0.5.23")


class Name(NamedTuple):
    """`parameters` are those the plugin passes or receives, in any order; others may stand beside them."""

    module: str
    path: str
    parameters: tuple[str, ...] = ()


_WORKER = "sglang.srt.speculative.eagle_worker_v2"
# what `hooks` stands around
HOOKED = (
    Name("sglang.srt.speculative.spec_info", "SpeculativeAlgorithm.create_worker", ("server_args",)),
    Name(
        "sglang.srt.speculative.spec_info",
        "SpeculativeAlgorithm.resolve_max_speculative_num_draft_tokens",
        ("server_args",),
    ),
    Name("sglang.srt.arg_groups.speculative_hook", "_auto_choose_speculative_params", ("server_args", "model_arch")),
    Name("sglang.srt.server_args", "ServerArgs.resolve_once"),
    Name("sglang.srt.sampling.sampling_params", "SamplingParams.verify", ("vocab_size",)),
)
NAMES = (
    *HOOKED,
    Name(_WORKER, "EAGLEWorkerV2.__init__", ("server_args", "target_worker")),
    Name(_WORKER, "EAGLEWorkerV2.init_cuda_graphs"),
    Name(_WORKER, "EAGLEWorkerV2.forward_batch_generation", ("batch",)),
    Name(_WORKER, "EAGLEWorkerV2.activate_step_by_batch", ("batch_size",)),
    Name(_WORKER, "EAGLEWorkerV2.on_verify_complete_cpu", ("num_correct_drafts_per_req", "batch_size")),
    Name(
        _WORKER,
        "EAGLEWorkerV2.build_adaptive_runtime_state",
        ("speculative_num_steps", "speculative_num_draft_tokens"),
    ),
    Name(_WORKER, "EAGLEWorkerV2.apply_runtime_state", ("state",)),
    Name(_WORKER, "EAGLEWorkerV2._build_trivial_verify_input", ("batch",)),
    Name(_WORKER, "EAGLEWorkerV2._stub_skipped_draft_extend", ("batch", "batch_output")),
    Name(_WORKER, "EagleDraftWorker.draft_forward", ("forward_batch",)),
    Name(
        "sglang.srt.speculative.eagle_utils",
        "per_step_draft_out_cache_loc",
        ("out_cache_loc", "batch_size", "topk", "num_steps"),
    ),
    Name(
        "sglang.srt.speculative.adaptive_runtime_state",
        "SpecRuntimeState",
        (
            "speculative_num_steps",
            "speculative_num_draft_tokens",
            "draft_attn_backend",
            "cuda_graph_runner",
            "target_attn_backend",
            "target_graph_runner",
            "draft_extend_attn_backend",
            "cuda_graph_runner_for_draft_extend",
        ),
    ),
    Name(
        "sglang.srt.speculative.eagle_worker_common",
        "prepare_for_draft_extend",
        ("batch", "predict", "num_draft_tokens", "cuda_graph_runner", "return_hidden_states_before_norm"),
    ),
    Name(
        "sglang.kernels.ops.speculative.cache_locs",
        "assign_extend_cache_locs_uniform_func",
        ("req_pool_indices", "req_to_token", "start_offset", "batch_size", "draft_token_num", "device"),
    ),
    Name("sglang.srt.speculative.eagle_info", "EagleDraftExtendInput", ("hidden_states", "num_accept_tokens")),
    Name("sglang.srt.model_executor.forward_context", "ForwardContext", ("attn_backend",)),
    Name("sglang.srt.model_executor.forward_context", "forward_context"),
    Name(
        "sglang.srt.model_executor.runner_backend.full_cuda_graph_backend",
        "FullCudaGraphBackend.replay",
        ("shape_key", "static_forward_batch"),
    ),
    Name("sglang.srt.model_executor.model_runner", "ModelRunner._get_attention_backend", ("init_new_workspace",)),
    Name("sglang.srt.runtime_context", "get_spec"),
    Name("sglang.srt.runtime_context", "get_parallel"),
)

# what exact sampling on a CPU stands on; without it sampled requests get SGLang's argmax there
SAMPLED = (
    Name("sglang.srt.speculative.eagle_worker_common", "eagle_sample", ("verify_input", "batch", "logits_output")),
    Name("sglang.srt.speculative.eagle_utils", "verify_tree_greedy_func", ("target_predict",)),
    Name(
        "sglang.srt.layers.sampler",
        "top_k_top_p_min_p_sampling_from_probs_torch",
        ("probs", "top_ks", "top_ps", "min_ps", "need_min_p_sampling", "sampling_seed", "positions"),
    ),
)

# what trees over a target's sliding windows stand on, on a CPU; without it none are served there
_CPU = "sglang.srt.layers.attention.intel_amx_backend"
WINDOWS = (
    Name(_CPU, "IntelAMXAttnBackend.forward_extend", ("q", "k", "v", "layer", "forward_batch")),
    Name(_CPU, "IntelAMXAttnBackend.forward_decode", ("q", "k", "v", "layer", "forward_batch")),
    Name(_CPU, "IntelAMXAttnBackend._get_attn_logits_buffer", ("num_seqs", "num_heads", "v_head_dim")),
)

# what Gemma 3's whole features stand on; without it the drafter is given SGLang's
FEATURES = (
    Name("sglang.srt.models.gemma3_causal", "Gemma3DecoderLayer.forward", ("hidden_states", "residual")),
    Name("sglang.srt.models.gemma3_causal", "Gemma3TextModel.forward", ("input_ids", "positions", "forward_batch")),
)


def version_problem(version: str) -> str:
    """Why this version is not served, "" where it is."""
    if version in VERSIONS:
        return ""
    return f"SGLang {version} is not one of those it was written for ({VERSIONS[0]} to {VERSIONS[-1]})"


def name_problem(names: tuple[Name, ...] = NAMES) -> str:
    """The first name that is missing or takes other parameters, "" where all are as expected."""
    for name in names:
        try:
            found: object = importlib.import_module(name.module)
            for part in name.path.split("."):
                found = getattr(found, part)
            parameters = inspect.signature(found).parameters  # type: ignore[arg-type]
        except Exception as error:  # whatever an import raises
            return f"SGLang has no {name.module}.{name.path} ({in_a_line(error)})"
        missing = [parameter for parameter in name.parameters if parameter not in parameters]
        if missing:
            return f"SGLang's {name.module}.{name.path} takes no {missing[0]}"
    return ""


class Attention(NamedTuple):
    """Names of the attention backends that will serve (prefill's, decoding's, the draft's own), tokens a page, and how many
    children a draft's node may have."""

    backends: tuple[str, ...]
    page_size: int
    top_k: int


def attention_of(server_args: Any) -> Attention:
    """While SGLang resolves its arguments, and after, what it decided stands beside them."""
    try:
        view: Any = importlib.import_module("sglang.srt.arg_groups.overrides").resolved_view(server_args)
    except (ImportError, AttributeError):
        view = server_args
    base = getattr(view, "attention_backend", None)
    named = [
        getattr(view, "prefill_attention_backend", None) or base,
        getattr(view, "decode_attention_backend", None) or base,
        getattr(view, "speculative_draft_attention_backend", None),
    ]
    return Attention(
        tuple(str(name) for name in named if name),
        int(getattr(view, "page_size", None) or 1),
        int(getattr(view, "speculative_eagle_topk", None) or 1),
    )


if __name__ == "__main__":
    found = importlib.import_module("sglang").__version__
    lines = [line for line in (version_problem(found), name_problem(NAMES + SAMPLED + WINDOWS + FEATURES)) if line]
    print("\n".join(lines) or f"SGLang {found}: every private name is as known")
