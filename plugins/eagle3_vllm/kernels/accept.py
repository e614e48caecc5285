"""Acceptance of verified trees, and all that vLLM is told of it.

Shape letters: S request slots, B requests of the padded batch, R tree rows (root first), D depths, T rows of the pass, L
rows of the logits.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from vllm.triton_utils import tl, triton

from eagle3_serving.tree import Acceptance
from eagle3_vllm.kernels.begin import TreeBuffers
from eagle3_vllm.kernels.requests import Requests, block, rows_of, slot_of


@dataclass(frozen=True)
class AcceptBuffers:
    """`rows_BD`, `count_B`, `bonus_B` int64 as the core's `Acceptance`. `sampled_BR` int64, R or wider: the tokens of the
    accepted path and the bonus, then zeros. `num_sampled_B` and `num_rejected_B` int32, as vLLM counts them."""

    rows_BD: Tensor
    count_B: Tensor
    bonus_B: Tensor
    sampled_BR: Tensor
    num_sampled_B: Tensor
    num_rejected_B: Tensor

    @classmethod
    def make(cls, batch: int, rows: int, depth: int, device: torch.device | str) -> "AcceptBuffers":
        return cls(
            torch.full((batch, depth), -1, dtype=torch.long, device=device),
            torch.zeros(batch, dtype=torch.long, device=device),
            torch.zeros(batch, dtype=torch.long, device=device),
            torch.zeros(batch, rows, dtype=torch.long, device=device),
            torch.zeros(batch, dtype=torch.int32, device=device),
            torch.zeros(batch, dtype=torch.int32, device=device),
        )

    @property
    def acceptance(self) -> Acceptance:
        return Acceptance(self.rows_BD, self.count_B, self.bonus_B)

    def first(self, batch: int) -> "AcceptBuffers":
        """Views of the first `batch` requests' buffers."""
        return AcceptBuffers(
            self.rows_BD[:batch],
            self.count_B[:batch],
            self.bonus_B[:batch],
            self.sampled_BR[:batch],
            self.num_sampled_B[:batch],
            self.num_rejected_B[:batch],
        )


def accept(
    trees: TreeBuffers,
    requests: Requests,
    input_ids_T: Tensor,
    chosen_L: Tensor,
    seq_lens_B: Tensor,
    prefill_len_S: Tensor,
    out: AcceptBuffers,
    sums: Tensor,
    invalid_L: Tensor | None = None,
) -> None:
    """`accept_greedy` over the tokens chosen after every row, in one launch.

    `trees` as `begin` left them, `input_ids_T` int the pass's tokens, `chosen_L` int the token after every row of the
    logits. A request whose prompt is not whole (`seq_lens_B` below `prefill_len_S` of its slot) has sampled and rejected
    nothing. `invalid_L` bool: rows that are never accepted. To `sums` int64 are added passes that verified a draft, their
    nodes, and the accepted ones. Padding: nothing accepted, nothing sampled. Raises ValueError where `out` is too narrow.
    """
    rows, width, depth = trees.rows, out.sampled_BR.shape[1], out.rows_BD.shape[1]
    if width < rows:
        raise ValueError(f"room for {width} sampled tokens a request, and trees of {rows} rows")
    _accept_kernel[(requests.size,)](
        trees.parents_BR,
        trees.depth_BR,
        trees.mask_BRR.view(torch.int8),
        requests.idx_mapping_B,
        requests.count,
        *requests.starts,
        input_ids_T,
        chosen_L,
        chosen_L if invalid_L is None else invalid_L.view(torch.int8),
        seq_lens_B,
        prefill_len_S,
        out.rows_BD,
        out.count_B,
        out.bonus_B,
        out.sampled_BR,
        out.num_sampled_B,
        out.num_rejected_B,
        sums,
        ROWS=rows,
        WIDTH=width,
        DEPTH=depth,
        VARLEN=requests.varlen,
        CHECKED=invalid_L is not None,
        BLOCK=block(max(width, depth)),
        PART=min(32, block(rows)),
    )


@triton.jit(do_not_specialize=["count"])
def _accept_kernel(  # type: ignore[no-untyped-def]
    parents_ptr,
    depth_ptr,
    mask_ptr,
    idx_ptr,
    count,
    query_start_ptr,
    cu_logits_ptr,
    ids_ptr,
    chosen_ptr,
    invalid_ptr,
    seq_lens_ptr,
    prefill_len_ptr,
    rows_out,
    count_out,
    bonus_out,
    sampled_out,
    num_sampled_out,
    num_rejected_out,
    sums_ptr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    DEPTH: tl.constexpr,
    VARLEN: tl.constexpr,
    CHECKED: tl.constexpr,
    BLOCK: tl.constexpr,
    PART: tl.constexpr,
):
    b = tl.program_id(0)
    slot = slot_of(idx_ptr, count, b)
    there = slot >= 0
    first, length, rows, logit = rows_of(b, slot, query_start_ptr, cu_logits_ptr, ROWS, VARLEN)
    root = first + length - rows
    base = b.to(tl.int64) * ROWS
    r = tl.arange(0, BLOCK)
    inside = r < ROWS
    alive = r < tl.where(there, rows, 0)
    parent = tl.load(parents_ptr + base + r, mask=inside, other=-2).to(tl.int32)
    depth = tl.load(depth_ptr + base + r, mask=inside, other=0).to(tl.int32)
    token = tl.load(ids_ptr + root + r, mask=alive, other=0).to(tl.int64)
    drafted = alive & (parent >= 0)
    wanted = tl.load(chosen_ptr + logit + parent, mask=drafted, other=-1).to(tl.int64)
    agrees = drafted & (token == wanted)
    if CHECKED:
        agrees = agrees & (tl.load(invalid_ptr + logit + r, mask=alive, other=0) == 0)
    # a row is reached where all that it sees, but for the root, agrees; by parts, or the mask of 128 rows would spill
    stops = ((agrees | (r == 0)) == 0).to(tl.int32)
    key = tl.max(r * 0 - 1, axis=0)
    for start in range(0, ROWS, PART):
        q = start + tl.arange(0, PART)
        both = (q < ROWS)[:, None] & inside[None, :]
        seen = tl.load(mask_ptr + (base + q)[:, None] * ROWS + r[None, :], mask=both, other=0)
        reached = tl.max(tl.where(seen != 0, stops[None, :], 0), axis=1) == 0
        deep = tl.load(depth_ptr + base + q, mask=q < ROWS, other=0).to(tl.int32)
        # the deepest, of equals the first
        key = tl.maximum(key, tl.max(tl.where(reached & (q < ROWS), deep * BLOCK + (BLOCK - 1 - q), -1), axis=0))
    accepted = key // BLOCK
    best = BLOCK - 1 - key % BLOCK
    bonus = tl.load(chosen_ptr + logit + best, mask=there, other=0).to(tl.int64)
    path = tl.load(mask_ptr + (base + best) * ROWS + r, mask=inside, other=0)
    step = (path != 0) & (depth >= 1)
    # every place of the outputs is written by one thread alone
    sampled_ptr = sampled_out + b.to(tl.int64) * WIDTH
    tl.store(sampled_ptr + depth - 1, token, mask=step)
    tl.store(sampled_ptr + r, tl.where(r == accepted, bonus, 0), mask=(r < WIDTH) & (r >= accepted))
    rows_ptr = rows_out + b.to(tl.int64) * DEPTH
    tl.store(rows_ptr + depth - 1, r, mask=step)
    tl.store(rows_ptr + r, r * 0 - 1, mask=(r >= accepted) & (r < DEPTH))
    tl.store(count_out + b, accepted)
    tl.store(bonus_out + b, bonus)
    seq = tl.load(seq_lens_ptr + b, mask=there, other=0)
    whole = there & (seq >= tl.load(prefill_len_ptr + tl.maximum(slot, 0), mask=there, other=0))
    tl.store(num_sampled_out + b, tl.where(whole, accepted + 1, 0))
    tl.store(num_rejected_out + b, tl.where(whole, rows - accepted - 1, 0))
    nodes = tl.sum((inside & (parent >= 0) & (r >= 1)).to(tl.int32), axis=0)
    verified = there & (nodes > 0)
    tl.atomic_add(sums_ptr, 1, mask=verified)
    tl.atomic_add(sums_ptr + 1, nodes.to(tl.int64), mask=verified)
    tl.atomic_add(sums_ptr + 2, accepted.to(tl.int64), mask=verified & (accepted > 0))
