"""Which rows of a pass form trees, and what each sees, by the core alone: what `begin` is held to.

Shape letters: B requests of the batch, R rows of a tree (root first), K nodes, T rows of all requests in a pass.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from eagle3_serving.tree import PADDING, TreeLayout, tree_layout, with_root


@dataclass
class TreeRows:
    """The trees of one target pass, one a request of the batch; a request without a draft is a tree of its last row.

    `index_BR` int64: the pass's row of every tree row; past a request's rows its last row again, so that whatever is
    written twice is written alike. `mask_BRR` bool: what a row sees of its tree. `prefix_B` int32: rows before the root.
    """

    layout: TreeLayout
    index_BR: Tensor
    mask_BRR: Tensor
    prefix_B: Tensor
    longest: int  # no prefix is longer

    @property
    def depth_BR(self) -> Tensor:
        return self.layout.depth_BN.gather(1, self.local_BR)

    @property
    def local_BR(self) -> Tensor:
        """The tree row behind every entry of `index_BR`."""
        return self.index_BR - self.index_BR[:, :1]


def tree_rows(
    parents_BK: Tensor, rows_B: Tensor, end_B: Tensor, length_B: Tensor, depth: int, longest: int
) -> TreeRows:
    """`parents_BK` node parents; `rows_B` rows of each tree (1 + nodes scheduled), the last rows of a request's, which
    end at `end_B` in the pass; `length_B` rows of the request with those. Nodes past the scheduled ones are dropped:
    parents stand before children, so what is left is a tree."""
    nodes = parents_BK.shape[1]
    node_K = torch.arange(nodes, device=parents_BK.device)
    layout = tree_layout(with_root(parents_BK.masked_fill(node_K >= rows_B[:, None] - 1, PADDING)), depth)
    row_R = torch.arange(nodes + 1, device=parents_BK.device)
    local_BR = torch.minimum(row_R, rows_B[:, None] - 1)
    index_BR = (end_B - rows_B)[:, None] + local_BR
    batch, rows = local_BR.shape
    mask_BRR = layout.ancestors_BNN.gather(1, local_BR[..., None].expand(batch, rows, rows))
    return TreeRows(layout, index_BR, mask_BRR, length_B - rows_B, longest)
