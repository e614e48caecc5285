"""One budget of nodes for a whole batch: the requests whose drafts are likelier get more of it.

Shape letters: B requests, C candidates in each request's pool, N nodes selected for each request, M = B * C.
"""

import torch
from torch import Tensor

from eagle3_serving.tree.expand import Candidates
from eagle3_serving.tree.select import DraftTree, select


def shares(candidates: Candidates, nodes: int) -> Tensor:
    """How many of the best `nodes` candidates of the batch each request holds: int64 [B]; -inf is never counted.

    Of equal scores the earlier request's go first, and inside a request the earlier candidate's, as in `select`.
    """
    batch, size = candidates.scores_BC.shape
    scores_M = candidates.scores_BC.flatten()
    best = scores_M.sort(descending=True, stable=True)
    live_N = (best.values[:nodes] > -torch.inf).long()
    return live_N.new_zeros(batch).scatter_add(0, best.indices[:nodes] // max(size, 1), live_N)


def select_over_batch(candidates: Candidates, nodes: int, width: int | None = None) -> DraftTree:
    """The best `nodes` candidates of all requests together, as one tree a request of `width` slots (at most C).

    A request's share is the top of its own pool, so it is as connected as `select` makes it. A share above `width`
    (min(nodes, C) unless told, which cuts nothing) is cut to it.
    """
    return select(candidates, nodes if width is None else width, shares(candidates, nodes))
