"""Every name of vLLM's that is not its public interface, and the check that it still is what we know.

A new version of vLLM is added so: run `python -m eagle3_vllm.compat` in its environment, which prints what differs; mend
the callers for what does; add the version to `versions.SUPPORTED`. Until then its users get vLLM's own EAGLE-3 and one line.
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import vllm
from vllm import ModelRegistry
from vllm._custom_ops import scaled_fp8_quant
from vllm.compilation.decorators import support_torch_compile
from vllm.config import CUDAGraphMode, SpeculativeConfig, VllmConfig
from vllm.distributed.parallel_state import is_global_first_rank
from vllm.exceptions import VLLMValidationError
from vllm.forward_context import set_forward_context
from vllm.logger import init_logger
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.layers.logits_processor import LogitsProcessor
from vllm.model_executor.models import gemma3
from vllm.model_executor.models.interfaces import EagleModelMixin, SupportsEagle3, supports_eagle3
from vllm.model_executor.models.llama_eagle3 import Eagle3LlamaForCausalLM
from vllm.platforms import current_platform
from vllm.sampling_params import SamplingParams
from vllm.v1.attention.backend import AttentionCGSupport
from vllm.v1.attention.backends import cpu_attn
from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend, CPUAttentionBackendImpl
from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend
from vllm.v1.core.sched.output import NewRequestData
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.outputs import DraftTokenIds
from vllm.v1.outputs import SamplerOutput as SamplerOutputV1
from vllm.v1.sample.metadata import SamplingMetadata
from vllm.v1.sample.rejection_sampler import RejectionSampler as RejectionSamplerV1
from vllm.v1.sample.sampler import Sampler as SamplerV1
from vllm.v1.spec_decode.llm_base_proposer import SpecDecodeBaseProposer
from vllm.v1.spec_decode.metadata import SpecDecodeMetadata
from vllm.v1.worker.gpu import model_states
from vllm.v1.worker.gpu.cudagraph_utils import BatchExecutionDescriptor, CudaGraphManager, ModelCudaGraphManager
from vllm.v1.worker.gpu.input_batch import InputBatch, set_dummy_context
from vllm.v1.worker.gpu.metrics.logits import get_num_nans
from vllm.v1.worker.gpu.model_states import resolve_model_state_cls
from vllm.v1.worker.gpu.model_states.default import DefaultModelState
from vllm.v1.worker.gpu.sample.output import SamplerOutput
from vllm.v1.worker.gpu.sample.sampler import Sampler
from vllm.v1.worker.gpu.spec_decode import init_speculator
from vllm.v1.worker.gpu.spec_decode.eagle.speculator import EagleSpeculator
from vllm.v1.worker.gpu.spec_decode.rejection_sampler import RejectionSampler
from vllm.v1.worker.gpu.spec_decode.target_dependent_ar.cudagraph_utils import SpeculatorCudaGraphManager
from vllm.v1.worker.gpu.spec_decode.target_dependent_ar.speculator import TargetDependentARSpeculator
from vllm.v1.worker.gpu.spec_decode.utils import DraftTokensHandler

from eagle3_vllm.versions import version_problem

__all__ = [
    "Attention",
    "AttentionBackendEnum",
    "AttentionCGSupport",
    "BatchExecutionDescriptor",
    "CPUAttentionBackend",
    "CPUAttentionBackendImpl",
    "CUDAGraphMode",
    "CudaGraphManager",
    "DefaultModelState",
    "DraftTokenIds",
    "DraftTokensHandler",
    "Eagle3LlamaForCausalLM",
    "EagleModelMixin",
    "EagleSpeculator",
    "InputBatch",
    "LogitsProcessor",
    "ModelCudaGraphManager",
    "ModelRegistry",
    "NewRequestData",
    "RejectionSampler",
    "RejectionSamplerV1",
    "Sampler",
    "SamplerOutput",
    "SamplerOutputV1",
    "SamplerV1",
    "SamplingMetadata",
    "SamplingParams",
    "Scheduler",
    "SpecDecodeBaseProposer",
    "SpecDecodeMetadata",
    "SpeculativeConfig",
    "SpeculatorCudaGraphManager",
    "SupportsEagle3",
    "TritonError",
    "VLLMValidationError",
    "VllmConfig",
    "cpu_attn",
    "current_platform",
    "flash",
    "gemma3",
    "get_num_nans",
    "gpu_attention_problems",
    "gpu_backend",
    "gumbel_sample",
    "init_logger",
    "is_global_first_rank",
    "model_runner",
    "noise_problems",
    "own_drafter",
    "own_drafters",
    "register_backend",
    "resolve_model_state_cls",
    "scaled_fp8_quant",
    "set_dummy_context",
    "set_forward_context",
    "support_torch_compile",
    "supports_eagle3",
]

try:
    from triton.errors import TritonError  # type: ignore[import-untyped]  # no RuntimeError, as what CUDA raises is
except ImportError:

    class TritonError(Exception):  # type: ignore[no-redef]
        """Without Triton nobody raises it."""


# the known EAGLE-3 architectures of the Llama and Qwen3 families: ours reads what any of them reads
ARCHITECTURES = ("Eagle3LlamaForCausalLM", "LlamaForCausalLMEagle3", "Eagle3Qwen3ForCausalLM")


# targets that give a drafter its features only in a class of ours (`targets`)
TARGETS = ("Gemma3ForCausalLM",)
own_drafters: dict[str, Any] = {}  # of vLLM's registry, by architecture, before ours took their places


def own_drafter(architectures: Sequence[str]) -> Any:
    """vLLM's own class for a drafter of one of these."""
    return next(own_drafters[name] for name in architectures if name in own_drafters).load_model_cls()


def model_runner() -> Any:
    """The module of Model Runner V2; it needs Triton, so it is imported where it is used."""
    from vllm.v1.worker.gpu import model_runner as module

    return module


def flash() -> tuple[Any, Any, Any]:
    """FlashAttention's backend, its implementation and its function; they import on CUDA alone."""
    from vllm.v1.attention.backends.fa_utils import flash_attn_varlen_func
    from vllm.v1.attention.backends.flash_attn import FlashAttentionBackend, FlashAttentionImpl

    return FlashAttentionBackend, FlashAttentionImpl, flash_attn_varlen_func


def gumbel_sample() -> Callable[..., Any]:
    """What vLLM's sampler draws by; drafts go without its noise where it is not there."""
    from vllm.v1.worker.gpu.sample.gumbel import gumbel_sample as function

    return function


def gpu_backend(name: str) -> tuple[Any, Any]:
    """A backend for GPUs and its implementation; ImportError where what it needs is not installed."""
    if name == "FLASHINFER":
        from vllm.v1.attention.backends.flashinfer import FlashInferBackend, FlashInferImpl

        return FlashInferBackend, FlashInferImpl
    if name == "TRITON_ATTN":
        from vllm.v1.attention.backends.triton_attn import TritonAttentionBackend, TritonAttentionImpl

        return TritonAttentionBackend, TritonAttentionImpl
    from vllm.v1.attention.backends.flash_attn import FlashAttentionBackend, FlashAttentionImpl

    return FlashAttentionBackend, FlashAttentionImpl


@dataclass(frozen=True)
class Signature:
    """A callable and the parameters that we give it or are given by it, in order; others may come after."""

    where: str
    callable: Callable[..., Any]
    parameters: tuple[str, ...]

    def problem(self) -> str | None:
        found = tuple(inspect.signature(self.callable).parameters)
        if found[: len(self.parameters)] == self.parameters:
            return None
        return f"{self.where} takes ({', '.join(found)}), known is ({', '.join(self.parameters)})"


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


FORWARD = _words("self layer query key value kv_cache attn_metadata output output_scale output_block_scale")


BOTH_RUNNERS = (
    Signature("VllmConfig.__post_init__", VllmConfig.__post_init__, ("self",)),
    Signature("_validate_spec_decode", SamplingParams._validate_spec_decode, ("self", "speculative_config")),
    Signature(
        "Attention.__init__", Attention.__init__, _words("self num_heads head_size scale num_kv_heads alibi_slopes")
    ),
    Signature(
        "the proposer's propose",
        SpecDecodeBaseProposer.propose,
        _words(
            "self num_speculative_tokens target_token_ids target_positions target_hidden_states next_token_ids "
            "token_indices_to_sample common_attn_metadata"
        ),
    ),
    Signature(
        "V1's RejectionSampler.forward",
        RejectionSamplerV1.forward,
        ("self", "metadata", "draft_probs", "logits", "sampling_metadata"),
    ),
    Signature(
        "Gemma3Model.forward",
        gemma3.Gemma3Model.forward,
        _words("self input_ids positions intermediate_tensors inputs_embeds kwargs"),
    ),
    Signature(
        "Gemma3DecoderLayer.forward", gemma3.Gemma3DecoderLayer.forward, _words("self positions hidden_states residual")
    ),
    Signature(
        "_maybe_add_hidden_state",
        EagleModelMixin._maybe_add_hidden_state,
        _words("self aux_hidden_states layer_idx hidden_states residual"),
    ),
    Signature("Scheduler.__init__", Scheduler.__init__, ("self", "vllm_config")),
    Signature("Scheduler.schedule", Scheduler.schedule, ("self",)),
    Signature("update_draft_token_ids", Scheduler.update_draft_token_ids, ("self", "draft_token_ids")),
    Signature(
        "make_spec_decoding_stats",
        Scheduler.make_spec_decoding_stats,
        _words("self spec_decoding_stats num_draft_tokens num_accepted_tokens num_invalid_spec_tokens request_id"),
    ),
    Signature(
        "do_kv_cache_update",
        CPUAttentionBackendImpl.do_kv_cache_update,
        ("self", "layer", "key", "value", "kv_cache", "slot_mapping"),
    ),
)

# what sampling of chains on runner V1 stands on
SAMPLING = (
    Signature(
        "V1's RejectionSampler.apply_logits_processors",
        RejectionSamplerV1.apply_logits_processors,
        ("self", "logits", "sampling_metadata", "metadata"),
    ),
    Signature(
        "V1's _get_logprobs_tensors",
        RejectionSamplerV1._get_logprobs_tensors,
        _words("self max_num_logprobs metadata logits target_logits bonus_logits sampled_token_ids"),
    ),
    Signature(
        "V1's Sampler.apply_logits_processors",
        SamplerV1.apply_logits_processors,
        ("self", "logits", "sampling_metadata", "predict_bonus_token"),
    ),
    Signature("V1's Sampler.sample", SamplerV1.sample, ("self", "logits", "sampling_metadata")),
    Signature(
        "SamplingMetadata",
        SamplingMetadata,
        _words("temperature all_greedy all_random top_p top_k generators max_num_logprobs"),
    ),
    Signature(
        "SpecDecodeMetadata",
        SpecDecodeMetadata,
        _words(
            "draft_token_ids num_draft_tokens cu_num_draft_tokens cu_num_sampled_tokens target_logits_indices "
            "bonus_logits_indices"
        ),
    ),
)

# what a drafter in fp8 stands on, on a GPU
FP8 = (
    Signature(
        "scaled_fp8_quant",
        scaled_fp8_quant,
        _words("input scale num_token_padding scale_ub use_per_token_if_dynamic"),
    ),
)

TREES = (
    Signature(
        "set_dummy_context",
        set_dummy_context,
        _words("input_batch block_tables context_len num_kv_blocks max_model_len"),
    ),
    Signature(
        "InputBatch.make_dummy", InputBatch.make_dummy, _words("num_reqs num_tokens input_buffers max_query_len")
    ),
    Signature("init_speculator", init_speculator, ("vllm_config", "device", "req_states")),
    Signature("init_model_state", model_states.init_model_state, ("vllm_config", "model", "encoder_cache", "device")),
    Signature(
        "EagleSpeculator.propose",
        EagleSpeculator.propose,
        _words(
            "self input_batch attn_metadata slot_mappings last_hidden_states aux_hidden_states num_sampled "
            "num_rejected last_sampled next_prefill_tokens temperature seeds dp_sync_state dummy_run "
            "skip_attn_for_dummy_run mm_inputs is_profile num_speculative_tokens"
        ),
    ),
    Signature(
        "the speculator's _run_model",
        TargetDependentARSpeculator._run_model,
        _words("self num_tokens attn_metadata slot_mappings num_tokens_across_dp cudagraph_runtime_mode mm_inputs"),
    ),
    Signature(
        "DefaultModelState.prepare_attn",
        DefaultModelState.prepare_attn,
        _words("self input_batch cudagraph_mode block_tables slot_mappings attn_groups kv_cache_config for_capture"),
    ),
    Signature("add_request", DefaultModelState.add_request, ("self", "req_index", "new_req_data")),
    Signature(
        "RejectionSampler.__call__",
        RejectionSampler.__call__,
        ("self", "logits", "input_batch", "draft_logits", "invalid_drafts"),
    ),
    Signature(
        "RejectionSampler._get_logprobs_tensors",
        RejectionSampler._get_logprobs_tensors,
        _words("self sampled num_sampled logits cu_num_logits cu_num_logits_np max_num_logprobs"),
    ),
    Signature(
        "Sampler.sample",
        Sampler.sample,
        _words(
            "self logits expanded_idx_mapping idx_mapping idx_mapping_np pos input_ids expanded_local_pos "
            "seq_lens_upper_bound_np return_logprobs"
        ),
    ),
    Signature("DraftTokensHandler", DraftTokensHandler.__init__, ("self", "device")),
    Signature("set_draft_tokens", DraftTokensHandler.set_draft_tokens, ("self", "input_batch", "draft_tokens")),
    Signature("get_draft_tokens", DraftTokensHandler.get_draft_tokens, ("self",)),
    Signature(
        "CudaGraphManager.__init__",
        CudaGraphManager.__init__,
        _words(
            "self vllm_config device cudagraph_mode decode_query_len lora_capture_cases varlen_decode ubatch_runner"
        ),
    ),
    Signature(
        "CudaGraphManager.dispatch",
        CudaGraphManager.dispatch,
        _words("self num_reqs num_tokens uniform_token_count num_active_loras max_query_len"),
    ),
    Signature("CudaGraphManager.capture", CudaGraphManager.capture, _words("self create_forward_fn progress_bar_desc")),
    Signature("CudaGraphManager._init_candidates", CudaGraphManager._init_candidates, ("self",)),
    Signature("run_fullgraph", CudaGraphManager.run_fullgraph, ("self", "desc")),
    Signature(
        "SpeculatorCudaGraphManager.capture",
        SpeculatorCudaGraphManager.capture,
        _words("self forward_fn model_state input_buffers block_tables attn_groups kv_cache_config progress_bar_desc"),
    ),
    Signature(
        "BatchExecutionDescriptor",
        BatchExecutionDescriptor,
        _words("cg_mode num_tokens num_reqs uniform_token_count max_query_len"),
    ),
    Signature("CPUAttentionBackendImpl.forward", CPUAttentionBackendImpl.forward, FORWARD),
)


def problems(signatures: tuple[Signature, ...]) -> list[str]:
    """What differs from what we know."""
    return [problem for signature in signatures if (problem := signature.problem())]


# looked up by Model Runner V2 in its own module, where they are replaced
RUNNER = ("init_speculator", "init_model_state", "DraftTokensHandler", "ModelCudaGraphManager")


def all_problems() -> list[str]:
    """Everything that differs; backends for GPUs are looked at where one is chosen."""
    missing = [f"Model Runner V2 knows no {name}" for name in RUNNER if not hasattr(model_runner(), name)]
    return problems(BOTH_RUNNERS + SAMPLING + FP8 + TREES) + missing


def gpu_attention_problems(name: str) -> list[str]:
    """The same of the backend for GPUs with this name."""
    try:
        _, implementation = gpu_backend(name)
    except ImportError as error:
        return [f"attention backend {name}: {error}"]
    return problems((Signature(f"{name}'s forward", implementation.forward, FORWARD),))


def noise_problems() -> list[str]:
    """The same of the sampler's noise, by which drafts may go."""
    try:
        function = gumbel_sample()
    except ImportError as error:
        return [str(error)]
    known = _words("logits expanded_idx_mapping temperature seed pos apply_temperature is_drafting")
    missing = [] if "use_fp64" in inspect.signature(function).parameters else ["gumbel_sample takes no use_fp64"]
    return problems((Signature("gumbel_sample", function, known),)) + missing


if __name__ == "__main__":
    lines = [line for line in (version_problem(vllm.__version__), *all_problems(), *noise_problems()) if line]
    print("\n".join(lines) or f"vLLM {vllm.__version__}: every private name is as known")
    raise SystemExit(1 if lines else 0)
