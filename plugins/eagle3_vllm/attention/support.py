"""Which attention backends for GPUs can attend over trees: FLASH_ATTN in both ways, FLASHINFER and TRITON_ATTN by the split kernel.

The latter two have run in no engine on a GPU: they serve trees where they are asked for by name, and trees too.
"""

import torch

from eagle3_vllm.compat import VllmConfig, gpu_attention_problems

BACKENDS = ("FLASH_ATTN", "FLASHINFER", "TRITON_ATTN")
LARGEST_PAGE = 64  # of FlashInfer: a table of larger blocks is not the one that its layers read


def backend_names(config: VllmConfig) -> set[str]:
    """Of the target's and the drafter's attention."""
    chosen = {config.attention_config.backend, getattr(config.speculative_config, "attention_backend", None)}
    return {backend.name for backend in chosen if backend is not None} or {"FLASH_ATTN"}


def unsupported(config: VllmConfig) -> list[str]:
    """Why this server's attention cannot attend over trees."""
    if config.attention_config.backend is None and torch.cuda.get_device_capability()[0] not in (8, 9):
        which = " or ".join(BACKENDS)
        return [f"a GPU on which vLLM's own choice is not FlashAttention; ask for --attention-backend {which}"]
    names = backend_names(config)
    if unknown := sorted(names - {*BACKENDS}):
        return [f"attention backend {unknown[0]}: only {', '.join(BACKENDS)} are known"]
    if "FLASHINFER" in names and (config.cache_config.block_size or 0) > LARGEST_PAGE:
        return [
            f"FLASHINFER cuts blocks of more than {LARGEST_PAGE} tokens into pages of its own: --block-size {LARGEST_PAGE}"
        ]
    if getattr(config.model_config.hf_text_config, "attn_logit_softcapping", None):
        return ["attention with a soft cap on its scores"]
    return [problem for name in sorted(names) for problem in gpu_attention_problems(name)]
