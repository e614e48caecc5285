"""Where the KV rows of accepted draft tokens go: from their places in the tree to their places in the text.

Shape letters: B requests, D depths.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from eagle3_serving.tree.accept import Acceptance


class KVMoves(NamedTuple):
    """`source_BD` and `destination_BD` int64: KV places of the d-th accepted row, both -1 past the accepted ones.

    Safe as one gather and one scatter: destinations are distinct, so no two writes meet, and the gather has read every
    row before the first write. Safe in place too, d ascending: parents stand before children, so the d-th accepted row
    is row d + 1 or later, destination <= source, and a write never lands on a row still to be read.
    """

    source_BD: Tensor
    destination_BD: Tensor


def kv_moves(acceptance: Acceptance, start_B: Tensor) -> KVMoves:
    """The moves after a verify pass whose row i stands at KV place `start_B` + i; row 0, the root's, stays there."""
    depth_D = torch.arange(acceptance.rows_BD.shape[1], device=start_B.device)
    past_BD = depth_D >= acceptance.count_B[:, None]
    source_BD = start_B[:, None] + acceptance.rows_BD
    destination_BD = start_B[:, None] + 1 + depth_D
    return KVMoves(source_BD.masked_fill(past_BD, -1), destination_BD.masked_fill(past_BD, -1))


def committed_after(acceptance: Acceptance, start_B: Tensor) -> Tensor:
    """KV rows [B] int64 that stay after the moves: those before the pass, the root's and the accepted ones."""
    return start_B + 1 + acceptance.count_B
