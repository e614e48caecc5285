"""vLLM's attention backends by name, with trees where ours can be imported: vLLM looks for one when a layer is made."""

from importlib import import_module
from typing import Any

from eagle3_serving.notice import in_a_line
from eagle3_vllm.compat import AttentionBackendEnum, init_logger

logger = init_logger("vllm.eagle3")

OURS = {
    "CPU_ATTN": ("cpu", "TreeCPUAttentionBackend"),
    "FLASH_ATTN": ("cuda", "TreeFlashAttentionBackend"),
    "FLASHINFER": ("flashinfer_backend", "TreeFlashInferBackend"),
    "TRITON_ATTN": ("triton_backend", "TreeTritonAttentionBackend"),
}


def __getattr__(name: str) -> Any:
    """The backend class of that name: ours, or vLLM's own and a line. ImportError where vLLM's own cannot be imported."""
    if name not in OURS:
        raise AttributeError(name)
    try:
        return tree_backend(name)
    except Exception as error:
        own_module, own = str(AttentionBackendEnum[name].value).rsplit(".", 1)
        theirs = getattr(import_module(own_module), own)
        logger.warning("eagle3: vLLM's own %s, without trees: %s", name, in_a_line(error))
        return theirs


def tree_backend(name: str) -> Any:
    """Ours alone; raises what its import does."""
    module, cls = OURS[name]
    return getattr(import_module(f"eagle3_vllm.attention.{module}"), cls)
