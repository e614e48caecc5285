"""What a tree cannot do: for a whole server, or for one request, which is then drafted a chain."""

from pathlib import Path
from typing import Any

import torch

from eagle3_serving.checkpoint.read import read
from eagle3_serving.checkpoint.source import Source, open_source
from eagle3_serving.notice import in_a_line
from eagle3_serving.serve.gates import FIELDS, Asked
from eagle3_vllm.compat import VllmConfig, cpu_attn, current_platform
from eagle3_vllm.settings import Settings

_KNOWN_KINDS = {"full_attention", "sliding_attention"}
# connectors that were seen to give back the target's and the drafter's rows as they were: the one stores prompts, the other
# hands them to a decoding server, and a prompt's rows stand as a text's. Others may take rows of a tree before the accepted ones
# are moved to their places
CARRIED = (None, "ExampleConnector", "NixlConnector")
# what vLLM itself reads of a request's `extra_args`, which says nothing about tokens: where rows come from and go to
_TRANSFERS = {"kv_transfer_params", "ec_transfer_params", "kv_cache_report_mode"}
UNPROVEN = "on a GPU trees are not known to be faster than vLLM's own chain; EAGLE3_MODE=tree serves them all the same"


def server_reasons(config: VllmConfig, settings: Settings) -> list[str]:
    """Why this server verifies chains, by vLLM's own code; empty where it verifies trees."""
    if reasons := config_reasons(config, settings):
        return reasons
    try:
        return attention_reasons(config)
    except Exception as error:
        return [in_a_line(error)]


def config_reasons(config: VllmConfig, settings: Settings) -> list[str]:
    """The same, of a config that is not whole yet: the KV cache's layout is not settled."""
    try:
        return _config_reasons(config, settings)
    except Exception as error:  # a field that is no longer there
        return [in_a_line(error)]


def _config_reasons(config: VllmConfig, settings: Settings) -> list[str]:
    if settings.mode == "chain":
        return ["EAGLE3_MODE is chain"]
    if settings.mode == "auto" and current_platform.is_cuda():
        return [UNPROVEN]
    speculative, model, parallel = config.speculative_config, config.model_config, config.parallel_config
    assert speculative is not None
    if wrong := shape_reasons(settings, speculative.num_speculative_tokens):
        return wrong
    if not config.use_v2_model_runner:
        return ["Model Runner V1 runs: it verifies chains only"]
    masks = parallel_drafter(speculative)
    checks = {
        "pipeline parallelism": parallel.pipeline_parallel_size > 1,
        "context parallelism": max(parallel.decode_context_parallel_size, parallel.prefill_context_parallel_size) > 1,
        # ranks of any other target know nothing of each other: each serves its own requests
        "data parallelism of a mixture of experts": parallel.data_parallel_size > 1 and model.is_moe,
        "LoRA adapters": config.lora_config is not None,
        "a hybrid or recurrent target": model.is_hybrid or model.is_attention_free,
        "multi-head latent attention": model.use_mla,
        "an encoder-decoder target": model.is_encoder_decoder,
        # trees serve the texts of a server that takes nothing else: no row of a text stands for a part of an image
        "multimodal input (--language-model-only serves texts alone, with trees)": model.supports_multimodal_inputs,
        "multimodal rotary positions": model.uses_mrope,
        **window_checks(model, speculative.num_speculative_tokens),
        "a quantised KV cache": config.cache_config.cache_dtype
        not in ("auto", str(model.dtype).removeprefix("torch.")),
        "a KV connector": connector(config) not in CARRIED,
        "watermarks": getattr(config, "watermark_config", None) is not None,
        "sampling masks": model.return_sampling_mask,
        "trace replay": model.enable_trace_replay,
        "batch-sharded sampling": parallel.enable_batch_sharded_sampling,
        f"rejection_sample_method {speculative.rejection_sample_method}": speculative.rejection_sample_method
        != "standard",
        "draft_sample_method probabilistic": speculative.draft_sample_method != "greedy",
        "parallel drafting": speculative.parallel_drafting and masks is None,
        "a parallel drafter that looks back on a window": masks is not None and has_window(masks),
    }
    return [what for what, there in checks.items() if there]


def parallel_drafter(speculative: Any) -> Source | None:
    """A drafter with masks (P-EAGLE); None for any other, and for a hub's name, which is vLLM's to find first."""
    drafter = getattr(speculative.draft_model_config, "model", None)
    if drafter is None or not Path(drafter).is_dir():
        return None
    source = open_source(Path(drafter))
    return source if "mask_hidden" in source.tensors else None


def has_window(drafter: Source) -> bool:
    return read(drafter).config.sliding_window is not None


def connector(config: VllmConfig) -> str | None:
    """The name of the server's KV connector, and what it does beyond handing prompts on; None without one."""
    told = config.kv_transfer_config
    if told is None:
        return None
    both_ways = " both ways" if told.kv_connector_extra_config.get("bidirectional_kv_xfer") else ""
    return f"{told.kv_connector or 'one without a name'}{both_ways}"


def shape_reasons(settings: Settings, nodes: int) -> list[str]:
    """What was asked of trees that these nodes cannot hold."""
    if settings.trees:
        large = [str(shape) for shape in settings.trees if shape.tokens > nodes + 1]
        return (
            [f"EAGLE3_TREES: {large[0]} has more tokens than num_speculative_tokens {nodes} and the root"]
            if large
            else []
        )
    if settings.depth is not None and settings.depth > nodes:
        return [f"EAGLE3_TREE_DEPTH {settings.depth} is above the {nodes} nodes of a tree"]
    return []


def window_checks(model: Any, nodes: int) -> dict[str, bool]:
    """What a target's layers do beyond plain attention over all of a text, by the reason for chains that it is. On a CPU windows
    slide with a row's depth; a tree must fit into one, for its own rows are all in sight there."""
    text = model.hf_text_config
    kinds = set(getattr(text, "layer_types", None) or ["full_attention"])
    window: int = model.get_sliding_window() or getattr(text, "sliding_window", None) or 0
    windows = model.get_sliding_window() is not None or "sliding_attention" in kinds
    return {
        f"layers of kind {', '.join(sorted(kinds - _KNOWN_KINDS))}": bool(kinds - _KNOWN_KINDS),
        "sliding windows": windows and torch.cuda.is_available(),
        f"a window of {window}, which a tree of {nodes} nodes may leave": windows and nodes >= window,
        "attention sinks": text.model_type == "gpt_oss",
        "softcapped attention scores": bool(getattr(text, "attn_logit_softcapping", None)),
    }


def attention_reasons(config: VllmConfig) -> list[str]:
    """Why the attention backend cannot attend over trees; raises what the import of ours does."""
    from eagle3_vllm.attention.chosen import tree_backend
    from eagle3_vllm.attention.support import backend_names, unsupported

    if torch.cuda.is_available():
        reasons, names = unsupported(config), backend_names(config)
    else:
        model = config.model_config
        isa = cpu_attn._get_attn_isa(model.dtype, config.cache_config.block_size, model.get_head_size(), "auto")
        known = f'the CPU keeps its KV cache in the "{isa}" layout; only "vec" is known'
        reasons, names = [] if isa == "vec" else [known], {"CPU_ATTN"}
    if not reasons:
        for name in names:
            tree_backend(name)
    return reasons


def chain_reason(params: Any) -> str | None:
    """Why a request's draft must be a chain: these look at the tokens before a row as if the rows were a text."""
    if params is None:
        return None
    checks = {
        "grammar": params.structured_outputs is not None,
        "penalties": bool(params.presence_penalty or params.frequency_penalty or params.repetition_penalty != 1.0),
        "bad_words": bool(params.bad_words),
        "min_tokens": bool(params.min_tokens),
        "thinking_budget": getattr(params, "thinking_token_budget", None) is not None,
        "logits_processor": bool(set(params.extra_args or ()) - FIELDS - _TRANSFERS),
        # the first few nodes of a tree are its top: of its likeliest path they are the likeliest
        "most_draft_tokens": Asked.heard(params.extra_args).most is not None,
    }
    return next((name for name, there in checks.items() if there), None)
