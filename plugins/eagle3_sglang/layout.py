"""Between the shared tree and SGLang's: what its kernels want to be told, and what a draft tells of every tree.

Shape letters: B requests, K branches (top-k), C candidates, D draft steps, S trees.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from eagle3_serving.serve.shape import Shape
from eagle3_serving.tree import Candidates, Frontier


def expected_gains(depths: Sequence[Candidates], shapes: Sequence[Shape]) -> Tensor:
    """[S, B] fp32: accepted drafts that each tree is expected to give, zero for one deeper than `depths`."""
    sizes = [depth.scores_BC.shape[1] for depth in depths]
    chance_BC = torch.cat([depth.scores_BC for depth in depths], dim=1).exp()
    nothing_B = chance_BC.new_zeros(chance_BC.shape[0])
    # trees of equal depth are the first nodes of one order: few kernels, since this runs inside every draft's graph
    sums: dict[int, Tensor] = {}
    for steps in {shape.steps for shape in shapes if 0 < shape.steps <= len(depths)}:
        of_depth_BC = chance_BC[:, : sum(sizes[:steps])]
        most = min(max(shape.tokens for shape in shapes if shape.steps == steps) - 1, of_depth_BC.shape[1])
        sums[steps] = of_depth_BC.topk(most, dim=1).values.cumsum(1)
    return torch.stack(
        [
            sums[shape.steps][:, min(shape.tokens - 1, sums[shape.steps].shape[1]) - 1]
            if shape.steps in sums
            else nothing_B
            for shape in shapes
        ]
    )


def parent_list(frontiers: Sequence[Frontier]) -> Tensor:
    """[B, 1 + K * (D - 1)] as SGLang's kernels want it: entry g is the candidate that group g of candidates hangs under.

    Group 0 hangs under the root, and group 1 + K * d + k under node k of frontier d. [B, 0] where there is one depth.
    """
    nodes = [frontier.nodes_BK for frontier in frontiers]
    if len(nodes) == 1:
        return nodes[0][:, :0]
    return torch.cat([torch.full_like(nodes[0][:, :1], -1), *nodes[:-1]], dim=1)
