"""vLLM's TRITON_ATTN with trees: all that is no tree is its own, tree rows go to the split kernel over the same cache.

The bias that its kernel takes is one for all requests; the split kernel takes one a request, and
reads this backend's pages as they lie (`layout`). It has run under Triton's interpreter alone.
"""

from typing import Any

from eagle3_vllm.attention.implementation import TreeRowsImpl
from eagle3_vllm.compat import gpu_backend

TritonAttentionBackend: Any
TritonAttentionImpl: Any
TritonAttentionBackend, TritonAttentionImpl = gpu_backend("TRITON_ATTN")


class TreeTritonAttentionImpl(TreeRowsImpl, TritonAttentionImpl):
    """Ours before vLLM's own."""


class TreeTritonAttentionBackend(TritonAttentionBackend):
    @staticmethod
    def get_impl_cls() -> type[TreeTritonAttentionImpl]:
        return TreeTritonAttentionImpl
