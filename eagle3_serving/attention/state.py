"""Attention over a part of the keys, and two parts made one (the softmax's own associativity; FlashInfer's recursive
attention, arXiv 2501.01005, section 2.2).

Shape letters: B requests, R query rows, S keys, A query heads, K key-value heads, G = A / K, D head size.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor


class AttentionState(NamedTuple):
    """`out_BRAD` the attention's output over some keys, `lse_BRA` fp32 the natural logarithm of the sum of exponentials of
    their scaled scores; over no key at all 0 and -inf."""

    out_BRAD: Tensor
    lse_BRA: Tensor


def merge(one: AttentionState, other: AttentionState) -> AttentionState:
    """The state over both parts' keys, which must not overlap. Kernels with a base-2 sum (FlashInfer) times ln 2 first."""
    lse_BRA = torch.logaddexp(one.lse_BRA, other.lse_BRA)
    # exp(-inf - -inf): a row without any key stays 0
    weights = [(part.lse_BRA - lse_BRA).exp().nan_to_num(0.0)[..., None] for part in (one, other)]
    out_BRAD = weights[0] * one.out_BRAD.float() + weights[1] * other.out_BRAD.float()
    return AttentionState(out_BRAD.to(one.out_BRAD.dtype), lse_BRA)


def attend(
    q_BRAD: Tensor,
    k_BSKD: Tensor,
    v_BSKD: Tensor,
    seen_BRS: Tensor | None = None,
    scale: float | None = None,
    softcap: float | None = None,
) -> AttentionState:
    """Plain attention, scores and softmax in fp32: the reference, and fast enough for a tree's own few keys.

    `seen_BRS` bool, None: every key. `scale` 1 / sqrt(D) unless told. `softcap`: scores are bent to within it (Gemma 2).
    """
    heads = k_BSKD.shape[2]
    q_BKGRD = q_BRAD.unflatten(2, (heads, -1)).permute(0, 2, 3, 1, 4)
    shape = q_BKGRD.shape
    scale = 1 / math.sqrt(shape[-1]) if scale is None else scale
    # the query heads of one key head are its rows: keys are read once and never copied
    scores = (q_BKGRD.flatten(2, 3) @ k_BSKD.permute(0, 2, 3, 1)).float().unflatten(2, shape[2:4]) * scale
    if softcap is not None:
        scores = softcap * (scores / softcap).tanh()
    if seen_BRS is not None:
        scores = scores.masked_fill(~seen_BRS[:, None, None], -torch.inf)
    lse_BKGR = scores.logsumexp(-1)
    probs = (scores - lse_BKGR[..., None]).exp().nan_to_num(0.0).to(v_BSKD.dtype)
    out_BKGRD = (probs.flatten(2, 3) @ v_BSKD.transpose(1, 2)).unflatten(2, shape[2:4])
    out_BRAD = out_BKGRD.permute(0, 3, 1, 2, 4).flatten(2, 3)
    return AttentionState(out_BRAD, lse_BKGR.permute(0, 3, 1, 2).flatten(2, 3))
