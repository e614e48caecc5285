"""The likeliest path of a pool: what is drafted where only a chain can be verified.

Shape letters: B requests, C candidates in the pool.
"""

import torch
from torch import Tensor

from eagle3_serving.tree.expand import Candidates
from eagle3_serving.tree.layout import NO_PARENT


def likeliest_path(candidates: Candidates, depth: int, only_B: Tensor) -> Candidates:
    """The pool where, for the requests `only_B` [B] bool, every candidate off the greedy path has score -inf.

    The path takes the best child of the root, then the best child of that, `depth` times or as long as there is one.
    Of equal scores the earlier candidate's wins.
    """
    _, parents_BC, scores_BC = candidates
    index_C = torch.arange(scores_BC.shape[1], device=scores_BC.device)
    node_B = torch.full_like(only_B, NO_PARENT, dtype=torch.long)
    open_B = torch.ones_like(only_B)
    on_path_BC = torch.zeros_like(scores_BC, dtype=torch.bool)
    for _ in range(depth):
        score_BC = scores_BC.masked_fill(parents_BC != node_B[:, None], -torch.inf)
        node_B = score_BC.argmax(1)
        open_B = open_B & (score_BC.amax(1) > -torch.inf)
        on_path_BC = on_path_BC | (open_B[:, None] & (index_C == node_B[:, None]))
    return candidates._replace(scores_BC=scores_BC.masked_fill(only_B[:, None] & ~on_path_BC, -torch.inf))
