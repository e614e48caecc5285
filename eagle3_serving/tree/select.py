"""The best N nodes of a pool: always a connected tree, parents before children (EAGLE-2 section 4.1, reranking).

Shape letters: B requests, C candidates in the pool, N nodes selected.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from eagle3_serving.tree.expand import Candidates
from eagle3_serving.tree.layout import NO_PARENT, PADDING


class DraftTree(NamedTuple):
    """`tokens_BN` int64, `parents_BN` int64 (a node's index, NO_PARENT under the root, PADDING), `scores_BN` fp32,
    `pool_BN` int64: which candidate of the pool each node was (of no meaning where PADDING)."""

    tokens_BN: Tensor
    parents_BN: Tensor
    scores_BN: Tensor
    pool_BN: Tensor

    def first(self, nodes: int) -> "DraftTree":
        """The first `nodes` slots of every request, which hold all nodes where no request has more."""
        return DraftTree(*(x_BN[:, :nodes] for x_BN in self))


def select(candidates: Candidates, nodes: int, budget_B: Tensor | None = None) -> DraftTree:
    """The `nodes` candidates of each request with the highest scores; parents are re-indexed to the selection.

    No child may score above its parent, and parents stand before children in the pool. `budget_B` [B] int64 lowers
    the number of nodes of single requests; slots past it, and candidates of score -inf, become PADDING at the end.
    """
    tokens_BC, parents_BC, scores_BC = candidates
    batch, size = scores_BC.shape
    nodes = min(nodes, size)
    # a stable order puts a parent before a child of the same score: the selection stays connected under ties
    ranked_BC = scores_BC.sort(dim=1, descending=True, stable=True).indices
    chosen_BN = ranked_BC[:, :nodes]
    rank_N = torch.arange(nodes, device=scores_BC.device)
    empty_BN = scores_BC.gather(1, chosen_BN) == -torch.inf
    if budget_B is not None:
        empty_BN = empty_BN | (rank_N >= budget_B[:, None])
    chosen_BN = torch.where(empty_BN, size, chosen_BN).sort(dim=1).values
    empty_BN = chosen_BN == size
    new_index_BC = torch.zeros(batch, size + 1, dtype=torch.long, device=scores_BC.device)
    new_index_BC = new_index_BC.scatter(1, chosen_BN, rank_N.expand(batch, nodes))
    chosen_BN = chosen_BN.clamp(max=size - 1)
    old_parents_BN = parents_BC.gather(1, chosen_BN)
    parents_BN = new_index_BC.gather(1, old_parents_BN.clamp(min=0))
    parents_BN = torch.where(old_parents_BN < 0, NO_PARENT, parents_BN)
    return DraftTree(
        tokens_BN=tokens_BC.gather(1, chosen_BN).masked_fill(empty_BN, 0),
        parents_BN=parents_BN.masked_fill(empty_BN, PADDING),
        scores_BN=scores_BC.gather(1, chosen_BN).masked_fill(empty_BN, -torch.inf),
        pool_BN=chosen_BN,
    )
