"""For tests only: vLLM's Triton kernels that trip up the interpreter, or that it is slow with, in PyTorch, and one launched in
fewer programs. All serve plain decoding too."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class _InTorch:
    """Launched like the kernel it stands for, `kernel[grid](...)`, over all of its rows at once."""

    def __init__(self, launch: Callable[..., None]) -> None:
        self.launch = launch

    def __getitem__(self, grid: object) -> Callable[..., None]:
        return self.launch


def _grammar_bitmask(
    logits: Tensor, _: int, places: Tensor, cu_num_logits: Tensor, bitmask: Tensor, *sizes: int, **meta: Any
) -> None:
    """What a grammar forbids becomes -inf."""
    request, position = places // meta["MASK_STRIDE"], places % meta["MASK_STRIDE"]
    row = cu_num_logits[request] + position
    active = row < cu_num_logits[request + 1]
    allowed = (bitmask[..., None] >> torch.arange(32, dtype=torch.int32)) & 1 == 1
    allowed = allowed.flatten(1)[:, : logits.shape[1]]
    logits[row[active].long()] = logits[row[active].long()].masked_fill(~allowed[active], -torch.inf)


def _logprobs(out: Tensor, logits: Tensor, _: int, ids: Tensor, *sizes: int, **meta: Any) -> None:
    out.copy_(logits.float().log_softmax(-1).gather(1, ids))


def _ranks(out: Tensor, logits: Tensor, _: int, ids: Tensor, *sizes: int, **meta: Any) -> None:
    out.copy_((logits >= logits.gather(1, ids.long()[:, None])).sum(1))


class _NoisyRows:
    """vLLM's own kernel of Gumbel noise with one block for a row in place of 48, for the rows that have a temperature: each
    program costs the interpreter milliseconds. The noise goes by token id, so that the tokens are the same."""

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel

    def __getitem__(self, grid: tuple[int, int]) -> Callable[..., None]:
        _, blocks = grid

        def launch(argmax: Tensor, _: int, largest: Tensor, __: int, *rest: Any, BLOCK_SIZE: int, **meta: Any) -> None:
            *cache, logits, _stride, states, seeds, positions, temperature, vocabulary = rest
            block = 1 << (blocks * BLOCK_SIZE - 1).bit_length()
            largest.fill_(-torch.inf)  # the blocks that no longer run
            value, argmax[:, 0] = logits[:, :vocabulary].float().max(1)
            largest[:, 0] = value
            # a drafter's logits are kept by the kernel, whatever the temperature
            noisy = ((states >= 0) & (temperature[states.long()] > 0) | (cache[0] is not None)).nonzero()[:, 0]
            if len(noisy):
                of = [values[noisy] for values in (argmax, largest, logits, states, positions)]
                chosen, most, rows, owners, places = (values.contiguous() for values in of)
                sizes = [values.stride(0) for values in (chosen, most, rows)]
                noise = chosen, sizes[0], most, sizes[1], *cache, rows, sizes[2], owners, seeds, places, temperature
                self.kernel[len(noisy), 1](*noise, vocabulary, BLOCK_SIZE=block, **meta)
                argmax[noisy], largest[noisy] = chosen, most

        return launch


def stand_in() -> None:
    from vllm.v1.sample.ops import topk_topp_sampler
    from vllm.v1.worker.gpu import structured_outputs
    from vllm.v1.worker.gpu.sample import gumbel, logprob

    topk_topp_sampler.HAS_TRITON = False  # vLLM has top-k and top-p in PyTorch itself
    structured_outputs._apply_grammar_bitmask_kernel = _InTorch(_grammar_bitmask)
    logprob._topk_log_softmax_kernel, logprob._ranks_kernel = _InTorch(_logprobs), _InTorch(_ranks)
    gumbel._gumbel_sample_kernel = _NoisyRows(gumbel._gumbel_sample_kernel)
