"""Parents of a draft tree -> depths, dense ancestor mask and paths; one code for chain and tree, CPU and CUDA.

Shape letters: B requests, N nodes, R = N + 1 rows of a verify pass, M queried nodes, D depths.
"""

from typing import NamedTuple

import torch
from torch import Tensor

NO_PARENT = -1  # a child of the root; in row space, the root itself
PADDING = -2  # a slot that holds no node: it sees only itself and is never accepted


class TreeLayout(NamedTuple):
    """`depth_BN` counts from 0 at a node without a parent; `ancestors_BNN[b, i, j]`: j is i or above i."""

    parents_BN: Tensor
    depth_BN: Tensor
    ancestors_BNN: Tensor


def chain_parents(batch: int, length: int, device: torch.device | str = "cpu") -> Tensor:
    """A chain as a tree with one child a node: parents [B, N] int64, -1, 0, 1, ..."""
    return torch.arange(-1, length - 1, device=device).expand(batch, length)


def with_root(parents_BN: Tensor) -> Tensor:
    """Node parents [B, N] -> row parents [B, N + 1]: row 0 is the root (the last sampled token), node i is row i + 1."""
    root_B1 = torch.full_like(parents_BN[:, :1], NO_PARENT)
    return torch.cat([root_B1, torch.where(parents_BN == PADDING, PADDING, parents_BN + 1)], dim=1)


def tree_layout(parents_BN: Tensor, max_depth: int | None = None) -> TreeLayout:
    """Depths [B, N] int64 and ancestor mask [B, N, N] bool of a forest (EAGLE-2 section 4.2; EAGLE-3 section 3.1).

    `parents_BN` [B, N] int64 holds an index below the node's own, NO_PARENT or PADDING. `max_depth` (the deepest
    node's depth, N - 1 unless told) only saves rounds.
    """
    batch, nodes = parents_BN.shape
    index_N = torch.arange(nodes, device=parents_BN.device)
    jump_BN = torch.where(parents_BN < 0, index_N, parents_BN)
    ancestors_BNN = (index_N[:, None] == index_N).expand(batch, nodes, nodes)
    # pointer jumping: every round doubles how far up a node sees
    for _ in range((nodes - 1 if max_depth is None else max_depth).bit_length()):
        ancestors_BNN = ancestors_BNN | ancestors_BNN.gather(1, jump_BN[..., None].expand(batch, nodes, nodes))
        jump_BN = jump_BN.gather(1, jump_BN)
    return TreeLayout(parents_BN, ancestors_BNN.sum(-1) - 1, ancestors_BNN)


def positions(layout: TreeLayout, root_position_B: Tensor) -> Tensor:
    """Sequence positions [B, R] int64 of a layout in row space: the root's position plus the depth."""
    return root_position_B[:, None] + layout.depth_BN


def paths_of(layout: TreeLayout, nodes_BM: Tensor, max_depth: int) -> Tensor:
    """Retrieval paths [B, M, max_depth + 1] int64 of chosen nodes: slot d names the ancestor at depth d, -1 past the node."""
    batch, nodes = layout.parents_BN.shape
    queried = nodes_BM.shape[1]
    ancestors_BMN = layout.ancestors_BNN.gather(1, nodes_BM[..., None].expand(batch, queried, nodes))
    depth_BMN = layout.depth_BN[:, None].expand(batch, queried, nodes)
    # everything that is no ancestor lands in one slot past the end, which is cut off
    slot_BMN = torch.where(ancestors_BMN, depth_BMN, max_depth + 1)
    index_BMN = torch.arange(nodes, device=nodes_BM.device).expand(batch, queried, nodes)
    paths_BMD = torch.full((batch, queried, max_depth + 2), -1, dtype=torch.long, device=nodes_BM.device)
    return paths_BMD.scatter(2, slot_BMN, index_BMN)[..., : max_depth + 1]
