"""Acceptance of a verified tree: the longest path the target agrees with, and one bonus token.

Shape letters: B requests, R = N + 1 rows of the verify pass (row 0 is the root), D depths.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from eagle3_serving.tree.layout import PADDING, TreeLayout, paths_of


class Acceptance(NamedTuple):
    """`rows_BD` int64: the accepted draft rows in order of depth, -1 past `count_B`; `bonus_B` int64: the token after them."""

    rows_BD: Tensor
    count_B: Tensor
    bonus_B: Tensor


def accept_greedy(tokens_BR: Tensor, layout: TreeLayout, argmax_BR: Tensor, max_depth: int) -> Acceptance:
    """The longest root path whose every token is the target's argmax at its parent (EAGLE-3 section 2.1, T = 0).

    `tokens_BR` int64 target ids of the rows (the root's own is not looked at), `layout` in row space,
    `argmax_BR` int64 the target's choice after each row, `max_depth` the deepest node's depth. Of two paths of the
    same length (siblings of the same token) the first row's wins.
    """
    parents_BR = layout.parents_BN
    wanted_BR = argmax_BR.gather(1, parents_BR.clamp(min=0))
    agrees_BR = (tokens_BR == wanted_BR) & (parents_BR != PADDING)
    agrees_BR = torch.cat([torch.ones_like(agrees_BR[:, :1]), agrees_BR[:, 1:]], dim=1)
    whole_path_BR = (agrees_BR[:, None] | ~layout.ancestors_BNN).all(-1)
    reached_BR = torch.where(whole_path_BR, layout.depth_BN, -1)
    best_B = reached_BR.argmax(dim=1)  # the first of equals, which max does not promise
    count_B = reached_BR.gather(1, best_B[:, None])[:, 0]
    rows_BD = paths_of(layout, best_B[:, None], max_depth)[:, 0, 1:]
    return Acceptance(rows_BD, count_B, argmax_BR.gather(1, best_B[:, None])[:, 0])
