"""Noise that plain decoding and drafting share: a function of a request's seed, a position and a token.

A token drawn from a law p is the argmax of log p + g with Gumbel noise g. Where g is a function of the position, plain
decoding and verification draw the same token, whatever was drafted: sampled answers are equal token for token, not in law
alone. And a drafter that ranks its children by log q and the same g guesses the very draw (Gumbel coupling, Daliri, Musco
and Suresh, arXiv 2408.07978; how much of g: `sampling.COUPLING`): it hits wherever its law q is close, however flat p is.

The hash is murmur3's, over seed, position and token, as vLLM's Model Runner V2 draws: in the same width it is that noise.

Shape letters: X any rows, V tokens, B requests.
"""

from typing import NamedTuple

import torch
from torch import Tensor

_SECOND = 0x9E3779B9  # a second stream: the upper half of 53 bits


class Noise(NamedTuple):
    """`seed_B` int64; `position_B` int64, of the row that a token is drawn after (the last one of a text: its length - 1)."""

    seed_B: Tensor
    position_B: Tensor

    def gumbel(self, ahead: int, ids_V: Tensor, wide: bool = True) -> Tensor:
        """Noise [B, V] of the draw `ahead` positions further."""
        return gumbel(self.seed_B, self.position_B + ahead, ids_V, wide)


def gumbel(seed_X: Tensor, position_X: Tensor, ids_V: Tensor, wide: bool = True) -> Tensor:
    """Gumbel noise [X, V] of tokens `ids_V` int64 under int64 seeds at int64 positions.

    `wide`: fp64 of 53 random bits, else fp32 of 32, whose largest value, 22.9, is met once in 2^32.
    """
    if wide:
        # int32 with its sign turned is the word less 2^31; all places up to the last one are exact in fp64
        uniform_XV = (
            (_hash(seed_X, position_X, ids_V, _SECOND) ^ _signed(1 << 31)).double().add_(2.0**31).mul_(2.0**-32)
        )
        uniform_XV.add_(_right(_hash(seed_X, position_X, ids_V, 0), 11), alpha=2.0**-53).add_(2.0**-54)
        return uniform_XV.clamp_(max=1 - 2.0**-53).log_().neg_().log_().neg_()
    bits_XV = _hash(seed_X, position_X, ids_V, 0)
    # halves, since fp32 has no place for 32 bits; the tail that wins is where u is near 0
    uniform_XV = _right(bits_XV, 16).float() * 2.0**-16 + ((bits_XV & 0xFFFF).float() + 0.5) * 2.0**-32
    return -(-torch.log1p(-uniform_XV.clamp(max=1 - 2.0**-24))).log()


def _hash(seed_X: Tensor, position_X: Tensor, ids_V: Tensor, stream: int) -> Tensor:
    """murmur3 (32 bits, public domain) of four words: both halves of the seed, the position's lower one, the token; int32 [X, V]."""
    state_X = torch.full_like(seed_X, _signed(stream), dtype=torch.int32)
    for word_X in (seed_X, seed_X >> 32, position_X):
        state_X = _mixed(state_X, _key(word_X.to(torch.int32)))
    state_XV = _mixed(state_X[:, None], _key(ids_V.to(torch.int32))) ^ 16  # bytes
    state_XV = (state_XV ^ _right(state_XV, 16)) * _signed(0x85EBCA6B)
    state_XV = (state_XV ^ _right(state_XV, 13)) * _signed(0xC2B2AE35)
    return state_XV ^ _right(state_XV, 16)


def _key(word_X: Tensor) -> Tensor:
    return _rotated(word_X * _signed(0xCC9E2D51), 15) * 0x1B873593


def _mixed(state_X: Tensor, key_X: Tensor) -> Tensor:
    return _rotated(state_X ^ key_X, 13) * 5 + _signed(0xE6546B64)


def _rotated(value_X: Tensor, bits: int) -> Tensor:
    return (value_X << bits) | _right(value_X, 32 - bits)


def _right(value_X: Tensor, bits: int) -> Tensor:
    """Shifted right with zeros coming in: int32's own shift repeats the sign."""
    return (value_X >> bits) & ((1 << (32 - bits)) - 1)


def _signed(word: int) -> int:
    """A word of 32 bits as int32 holds it."""
    return word - (1 << 32) if word >= 1 << 31 else word
