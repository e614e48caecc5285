"""One depth of the dynamic draft tree: children of the frontier, and the next frontier (EAGLE-2 section 4.1).

Shape letters: B requests, K frontier nodes, C candidates (of one node in `Children`, of a depth elsewhere), V draft
vocabulary.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Children(NamedTuple):
    """`tokens_BKC` int64 draft ids, different in one node; `log_chance_BKC` fp32 <= 0, descending: how likely each is
    the next token, as far as the ranking goes."""

    tokens_BKC: Tensor
    log_chance_BKC: Tensor


class Candidates(NamedTuple):
    """The pool of nodes a tree is selected from, parents before children.

    `tokens_BC` int64 draft ids, `parents_BC` int64 pool index of the parent or -1 for a child of the root,
    `scores_BC` fp32 cumulative log-probability (never above the parent's).
    """

    tokens_BC: Tensor
    parents_BC: Tensor
    scores_BC: Tensor


class Frontier(NamedTuple):
    """The nodes the next draft step runs on: `nodes_BK` pool index, `slots_BK` the slot of the parent in the last frontier."""

    tokens_BK: Tensor
    scores_BK: Tensor
    nodes_BK: Tensor
    slots_BK: Tensor

    def first(self, width: int) -> "Frontier":
        """Its `width` best nodes."""
        return Frontier(*(x_BK[:, :width] for x_BK in self))


def root_frontier(batch: int, device: torch.device | str = "cpu") -> Frontier:
    """The frontier of one node: the root, whose log-probability is 0."""
    zeros_B1 = torch.zeros(batch, 1, dtype=torch.long, device=device)
    return Frontier(zeros_B1, zeros_B1.float(), zeros_B1 - 1, zeros_B1)


def top_children(logits_BKV: Tensor, top_k: int) -> Children:
    """The drafter's `top_k` most probable tokens and their log-probabilities.

    A score that is not a number becomes -inf, so that a broken draft costs speed and never correctness.
    """
    best = logits_BKV.float().log_softmax(-1).topk(min(top_k, logits_BKV.shape[-1]))
    # mended after the topk, on k values and not on V: one NaN makes its whole row NaN
    return Children(best.indices, best.values.nan_to_num(nan=-torch.inf, neginf=-torch.inf).clamp(max=0))


def expand(children: Children, frontier: Frontier, width: int, pool_size: int) -> tuple[Candidates, Frontier]:
    """The children of every frontier node as candidates, and the `width` best of those as the next frontier, best first.

    `pool_size` is how many candidates the pool holds already: the first new one gets that index.
    """
    tokens_BKC, log_chance_BKC = children
    scores_BC = (frontier.scores_BK[..., None] + log_chance_BKC).flatten(1)
    parents_BC = frontier.nodes_BK[..., None].expand_as(tokens_BKC).flatten(1)
    candidates = Candidates(tokens_BKC.flatten(1), parents_BC, scores_BC)
    chosen = scores_BC.topk(min(width, scores_BC.shape[1]))
    return candidates, Frontier(
        tokens_BK=candidates.tokens_BC.gather(1, chosen.indices),
        scores_BK=chosen.values,
        nodes_BK=chosen.indices + pool_size,
        slots_BK=chosen.indices // tokens_BKC.shape[-1],
    )


def pool(depths: Sequence[Candidates]) -> Candidates:
    """All depths' candidates, in the order of the depths."""
    tokens, parents, scores = zip(*depths, strict=True)
    return Candidates(torch.cat(tokens, dim=1), torch.cat(parents, dim=1), torch.cat(scores, dim=1))
