"""The rows of the pass that is about to run: parents, depths, what each sees, positions, rows before the root.

Shape letters: S request slots, K node parents of a slot, B requests of the padded batch, R tree rows (root first), T rows
of the pass.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from vllm.triton_utils import tl, triton

from eagle3_serving.tree import PADDING, TreeLayout
from eagle3_vllm.kernels.requests import Requests, block, rows_of, slot_of

PART = 64  # rows of one program


@dataclass(frozen=True)
class TreeBuffers:
    """One tree a request, as `tree_layout` of `with_root`: `parents_BR` and `depth_BR` int64, `mask_BRR` bool (a row sees
    itself and what is above it). `index_BR` int64: the pass's row of every tree row, past a request's rows its last row
    again (0 for padding of a varlen batch). `prefix_B` int32: rows before the root."""

    parents_BR: Tensor
    depth_BR: Tensor
    mask_BRR: Tensor
    index_BR: Tensor
    prefix_B: Tensor

    @classmethod
    def make(cls, batch: int, rows: int, device: torch.device | str) -> "TreeBuffers":
        """For `batch` requests of `rows` rows: what a pass without a tree has."""
        return cls(
            torch.full((batch, rows), PADDING, dtype=torch.long, device=device),
            torch.zeros(batch, rows, dtype=torch.long, device=device),
            torch.eye(rows, dtype=torch.bool, device=device).repeat(batch, 1, 1),
            torch.arange(batch * rows, device=device).view(batch, rows),
            torch.zeros(batch, dtype=torch.int32, device=device),
        )

    @property
    def rows(self) -> int:
        return self.parents_BR.shape[1]

    @property
    def layout(self) -> TreeLayout:
        return TreeLayout(self.parents_BR, self.depth_BR, self.mask_BRR)

    def first(self, batch: int) -> "TreeBuffers":
        """Views of the first `batch` requests' buffers."""
        return TreeBuffers(
            self.parents_BR[:batch],
            self.depth_BR[:batch],
            self.mask_BRR[:batch],
            self.index_BR[:batch],
            self.prefix_B[:batch],
        )


def begin(
    parents_SK: Tensor,
    requests: Requests,
    seq_lens_B: Tensor,
    depth: int,
    trees: TreeBuffers,
    positions_T: Tensor,
    chain: bool = False,
) -> None:
    """The trees of a pass into `trees`, and their rows' positions into `positions_T`, in one launch.

    `parents_SK` int64 [S, K >= R - 1] node parents by slot, none deeper than `depth`; nodes past a request's rows are
    dropped. `seq_lens_B` int rows of each request with those of this pass.
    `positions_T` int: the tree's rows alone are written. Padding gets rows that are PADDING, and no prefix. `chain`: rows
    see what rows of a text see, for attention without a mask; of any tree only the nodes before its first branch stay.
    """
    rows = trees.rows
    if parents_SK.shape[1] < rows - 1 or parents_SK.stride(1) != 1:
        raise ValueError(
            f"parents of {tuple(parents_SK.shape)} for trees of {rows} rows: {rows - 1} nodes a slot needed"
        )
    size = block(rows)
    part = min(PART, size)
    _begin_kernel[(requests.size, triton.cdiv(rows, part))](
        parents_SK,
        parents_SK.stride(0),
        requests.idx_mapping_B,
        requests.count,
        seq_lens_B,
        *requests.starts,
        trees.parents_BR,
        trees.depth_BR,
        trees.mask_BRR.view(torch.int8),
        trees.index_BR,
        trees.prefix_B,
        positions_T,
        ROWS=rows,
        DEPTH=min(depth, rows - 1),
        VARLEN=requests.varlen,
        CHAIN=chain,
        PART=part,
        BLOCK=size,
    )


@triton.jit(do_not_specialize=["count"])
def _begin_kernel(  # type: ignore[no-untyped-def]
    parents_ptr,
    parents_stride,
    idx_ptr,
    count,
    seq_lens_ptr,
    query_start_ptr,
    cu_logits_ptr,
    row_parents_ptr,
    depth_ptr,
    mask_ptr,
    index_ptr,
    prefix_ptr,
    positions_ptr,
    ROWS: tl.constexpr,
    DEPTH: tl.constexpr,
    VARLEN: tl.constexpr,
    CHAIN: tl.constexpr,
    PART: tl.constexpr,
    BLOCK: tl.constexpr,
):
    b = tl.program_id(0)
    slot = slot_of(idx_ptr, count, b)
    there = slot >= 0
    first, length, rows, _ = rows_of(b, slot, query_start_ptr, cu_logits_ptr, ROWS, VARLEN)
    seq = tl.load(seq_lens_ptr + b, mask=there, other=0).to(tl.int32)
    prefix = tl.maximum(seq - rows, 0)
    root = first + length - rows
    r = tl.program_id(1) * PART + tl.arange(0, PART)
    column = tl.arange(0, BLOCK)
    inside = r < ROWS
    alive = r < tl.where(there, rows, 0)
    node_ptr = parents_ptr + tl.maximum(slot, 0) * parents_stride - 1  # where the parent of row 0's node would stand
    if CHAIN:
        # a row's node hangs on the one before it; the first row that does not, and all after it, are dropped
        text = tl.load(node_ptr + column, mask=(column >= 1) & (column < tl.where(there, rows, 0)), other=-2).to(
            tl.int32
        )
        breaks = (column >= 1) & (text != column - 2)
        alive = alive & (r < tl.min(tl.where(breaks, column, BLOCK), axis=0))
    node = tl.load(node_ptr + r, mask=alive & (r >= 1), other=-2).to(tl.int32)
    up = tl.where(node == -2, -1, node + 1)
    parent = tl.where(r == 0, -1, tl.where(node == -2, -2, node + 1))
    depth = r * 0
    seen = r[:, None] == column[None, :]
    for _ in range(DEPTH):
        depth += (up >= 0).to(tl.int32)
        seen = seen | (up[:, None] == column[None, :])
        above = tl.load(node_ptr + up, mask=up >= 1, other=-2).to(tl.int32)
        up = tl.where(above == -2, -1, above + 1)
    at = b.to(tl.int64) * ROWS + r
    tl.store(row_parents_ptr + at, parent, mask=inside)
    tl.store(depth_ptr + at, depth, mask=inside)
    tl.store(index_ptr + at, root + tl.minimum(r, tl.maximum(rows - 1, 0)), mask=inside)
    both = inside[:, None] & (column < ROWS)[None, :]
    tl.store(mask_ptr + at[:, None] * ROWS + column[None, :], seen.to(tl.int8), mask=both)
    tl.store(positions_ptr + root + r, prefix + depth, mask=inside & (r < rows))
    if tl.program_id(1) == 0:
        tl.store(prefix_ptr + b, prefix)
