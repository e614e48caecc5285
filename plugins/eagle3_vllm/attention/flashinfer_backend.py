"""vLLM's FLASHINFER with trees: all that is no tree is its own, tree rows go to the split kernel over the same cache.

FlashInfer's own way, packed masks through XQA, takes one mask a request on one kind of GPU; the split kernel takes any, and
reads FlashInfer's pages as they lie (`layout`). It has run on no GPU, and without FlashInfer not even under the interpreter.
"""

from typing import Any

from eagle3_vllm.attention.implementation import TreeRowsImpl
from eagle3_vllm.compat import gpu_backend

FlashInferBackend: Any
FlashInferImpl: Any
FlashInferBackend, FlashInferImpl = gpu_backend("FLASHINFER")


class TreeFlashInferImpl(TreeRowsImpl, FlashInferImpl):
    """Ours before vLLM's own."""


class TreeFlashInferBackend(FlashInferBackend):
    @staticmethod
    def get_impl_cls() -> type[TreeFlashInferImpl]:
        return TreeFlashInferImpl
