"""For tests only: two of vLLM's Triton kernels that trip up the interpreter, in PyTorch. Both serve plain decoding too."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class _GrammarBitmask:
    """Launched like the kernel it stands for: `kernel[grid](...)` sets what a grammar forbids to -inf."""

    def __getitem__(self, grid: object) -> Callable[..., None]:
        return self.launch

    @staticmethod
    def launch(
        logits: Tensor, _: int, places: Tensor, cu_num_logits: Tensor, bitmask: Tensor, *sizes: int, **meta: Any
    ) -> None:
        request, position = places // meta["MASK_STRIDE"], places % meta["MASK_STRIDE"]
        row = cu_num_logits[request] + position
        active = row < cu_num_logits[request + 1]
        allowed = (bitmask[..., None] >> torch.arange(32, dtype=torch.int32)) & 1 == 1
        allowed = allowed.flatten(1)[:, : logits.shape[1]]
        logits[row[active].long()] = logits[row[active].long()].masked_fill(~allowed[active], -torch.inf)


def stand_in() -> None:
    from vllm.v1.sample.ops import topk_topp_sampler
    from vllm.v1.worker.gpu import structured_outputs

    topk_topp_sampler.HAS_TRITON = False  # vLLM has top-k and top-p in PyTorch itself
    structured_outputs._apply_grammar_bitmask_kernel = _GrammarBitmask()
