"""The Gumbel noise by which vLLM's sampler draws, inside a kernel: the core's `gumbel`, a hash of a request's seed, a position
and a token.

Every draw is an argmax of log p + noise, and only a large noise decides: so -log(-log(u)) is computed from 1 - u, in fp32,
also where vLLM and the core draw 53 random bits. What is rounded away is less than 2e-5 wherever a token may win by it.

Shape letters: X any rows, V tokens, S request slots.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from vllm.triton_utils import tl, triton

from eagle3_vllm.kernels.calibrate import log1p

_SECOND = tl.constexpr(0x9E3779B9)  # another hash of the same words: the upper bits of 53
_BELOW_ONE = tl.constexpr(1 - 2.0**-24)


class SharedNoise(NamedTuple):
    """What the target's draws go by, by request slot, in buffers that keep their places: `temperature_S` fp32 (0 = argmax)
    and `seeds_S` int64. `wide`: the noise is of 53 random bits, else of 32."""

    temperature_S: Tensor
    seeds_S: Tensor
    wide: bool


def gumbel_in_triton(seed_X: Tensor, position_X: Tensor, vocab: int, wide: bool) -> Tensor:
    """Noise [X, V] fp32 of tokens 0 .. `vocab` - 1, as kernels have it: for a look at it, they make their own."""
    out_XV = torch.empty(len(seed_X), vocab, dtype=torch.float32, device=seed_X.device)
    block = 1024
    _gumbel_kernel[(len(seed_X), triton.cdiv(vocab, block))](seed_X, position_X, out_XV, vocab, WIDE=wide, BLOCK=block)
    return out_XV


@triton.jit(do_not_specialize=["vocab"])
def _gumbel_kernel(seeds_ptr, positions_ptr, out, vocab, WIDE: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    token = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    noise = gumbel(tl.load(seeds_ptr + row), tl.load(positions_ptr + row), token, WIDE)
    tl.store(out + row * vocab + token, noise, mask=token < vocab)


@triton.jit
def gumbel(seed, position, ids, WIDE: tl.constexpr):  # type: ignore[no-untyped-def]
    """fp32 noise, always finite, of a block of target ids under an int64 seed at an int64 position: murmur3's (32 bits, public
    domain) of four words, both halves of the seed, the lower one of the position, the token."""
    bits, rest = _hash(seed, position, ids, 0), 0.5
    if WIDE:
        rest = (((bits ^ 0xFFFFFFFF) >> 11).to(tl.int32).to(tl.float32) + 0.5) * (1.0 / (1 << 21))
        bits = _hash(seed, position, ids, _SECOND) ^ 0xFFFFFFFF
    upper, lower = (bits >> 16).to(tl.int32).to(tl.float32), (bits & 0xFFFF).to(tl.int32).to(tl.float32)
    tail = upper * (1.0 / (1 << 16)) + (lower + rest) * (1.0 / (1 << 32))
    return -tl.log(-log1p(-tl.minimum(tail, _BELOW_ONE)))


@triton.jit
def _hash(seed, position, ids, STREAM: tl.constexpr):  # type: ignore[no-untyped-def]
    state = (seed ^ seed).to(tl.uint32) ^ STREAM
    state = _mix(state, (seed & 0xFFFFFFFF).to(tl.uint32))
    state = _mix(state, ((seed >> 32) & 0xFFFFFFFF).to(tl.uint32))
    state = _mix(state, (position & 0xFFFFFFFF).to(tl.uint32))
    state = _mix(state, ids.to(tl.uint32)) ^ 16  # bytes
    state = (state ^ (state >> 16)) * 0x85EBCA6B
    state = (state ^ (state >> 13)) * 0xC2B2AE35
    return state ^ (state >> 16)


@triton.jit
def _mix(state, word):  # type: ignore[no-untyped-def]
    state = state ^ (_rotate(word * 0xCC9E2D51, 15) * 0x1B873593)
    return _rotate(state, 13) * 5 + 0xE6546B64


@triton.jit
def _rotate(value, BITS: tl.constexpr):  # type: ignore[no-untyped-def]
    return (value << BITS) | (value >> (32 - BITS))
