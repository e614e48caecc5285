"""For tests only: vLLM's Triton kernels that trip up the interpreter, in PyTorch, and one that it is slow with, launched
in fewer programs. All serve plain decoding too."""

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


class _WholeRow:
    """vLLM's own kernel of Gumbel noise with one block for a row in place of 48: each program costs the interpreter
    milliseconds. The noise goes by token id, so that the tokens are the same."""

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel

    def __getitem__(self, grid: tuple[int, int]) -> Callable[..., None]:
        rows, blocks = grid

        def launch(argmax: Tensor, stride: int, largest: Tensor, *rest: Any, BLOCK_SIZE: int, **meta: Any) -> None:
            largest.fill_(-torch.inf)  # the blocks that no longer run
            block = 1 << (blocks * BLOCK_SIZE - 1).bit_length()
            self.kernel[rows, 1](argmax, stride, largest, *rest, BLOCK_SIZE=block, **meta)

        return launch


def stand_in() -> None:
    from vllm.v1.sample.ops import topk_topp_sampler
    from vllm.v1.worker.gpu import structured_outputs
    from vllm.v1.worker.gpu.sample import gumbel

    topk_topp_sampler.HAS_TRITON = False  # vLLM has top-k and top-p in PyTorch itself
    structured_outputs._apply_grammar_bitmask_kernel = _GrammarBitmask()
    gumbel._gumbel_sample_kernel = _WholeRow(gumbel._gumbel_sample_kernel)
