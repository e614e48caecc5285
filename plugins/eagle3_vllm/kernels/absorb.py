"""The inputs of the drafter's pass over the rows just verified: in the order of a text, ids shifted by one.

Shape letters: S request slots, B requests of the padded batch, D depths, T rows of the pass.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from vllm.triton_utils import tl, triton

from eagle3_vllm.kernels.requests import Requests, rows_of, slot_of

PARTS = (32, 128, 256)  # rows of one program: few sizes, or prompts of every length would be compiled for


@dataclass(frozen=True)
class AbsorbBuffers:
    """What the drafter's pass and the draft read.

    `order_T` int64: the pass's row whose features each row takes. `ids_T` int32, `positions_T` int64. By request: `last_B`
    int64 the row whose states the draft starts from, `slots_B` int64 (-1 for padding), `prefix_B` int32 rows in the
    drafter's cache that stay, `drafting_B` bool whether its prompt is whole.
    """

    order_T: Tensor
    ids_T: Tensor
    positions_T: Tensor
    last_B: Tensor
    slots_B: Tensor
    prefix_B: Tensor
    drafting_B: Tensor

    @classmethod
    def make(cls, batch: int, rows: int, device: torch.device | str) -> "AbsorbBuffers":
        """For `batch` requests of `rows` rows in all; `ids_T` and `positions_T` may be vLLM's own instead."""
        return cls(
            torch.arange(rows, device=device),
            torch.zeros(rows, dtype=torch.int32, device=device),
            torch.zeros(rows, dtype=torch.long, device=device),
            torch.zeros(batch, dtype=torch.long, device=device),
            torch.full((batch,), -1, dtype=torch.long, device=device),
            torch.zeros(batch, dtype=torch.int32, device=device),
            torch.zeros(batch, dtype=torch.bool, device=device),
        )


def absorb(
    requests: Requests,
    longest_rows: int,
    rows_BD: Tensor,
    num_sampled_B: Tensor,
    num_rejected_B: Tensor,
    input_ids_T: Tensor,
    seq_lens_B: Tensor,
    last_sampled_S: Tensor,
    next_prefill_tokens_S: Tensor,
    max_model_len: int,
    out: AbsorbBuffers,
) -> None:
    """What vLLM's `prepare_prefill_inputs` makes of a text, made of verified trees, in one launch.

    `longest_rows`: no request has more rows in the pass; where uniform, every one has these. `rows_BD` int64 accepted tree
    rows, -1 past them. `num_sampled_B` and `num_rejected_B` int as vLLM counts them. `input_ids_T` int the target's own,
    another buffer than `out.ids_T`. The token after the last row is `last_sampled_S` of the request's slot, or the prompt's
    next one (`next_prefill_tokens_S`) where nothing was sampled. Row i of a request stands at position `seq_lens_B` - its
    rows + i, below `max_model_len`.
    Past its last row a request's rows are waste, of id 0; rows that are no request's keep what they hold. Padding: slot -1,
    no prefix, not drafting, last row its first (0 where varlen).
    """
    part = next((part for part in PARTS if part >= longest_rows), PARTS[-1])
    _absorb_kernel[(requests.size, triton.cdiv(longest_rows, part))](
        requests.idx_mapping_B,
        requests.count,
        *requests.starts,
        rows_BD,
        rows_BD.stride(0),
        num_sampled_B,
        num_rejected_B,
        input_ids_T,
        seq_lens_B,
        last_sampled_S,
        next_prefill_tokens_S,
        max_model_len,
        out.order_T,
        out.ids_T,
        out.positions_T,
        out.last_B,
        out.slots_B,
        out.prefix_B,
        out.drafting_B.view(torch.int8),
        # a prompt's length is no reason to compile: it matters only where all have the same
        ROWS=0 if requests.varlen else longest_rows,
        DEPTH=rows_BD.shape[1],
        VARLEN=requests.varlen,
        PART=part,
    )


@triton.jit(do_not_specialize=["count", "rows_stride", "max_model_len"])
def _absorb_kernel(  # type: ignore[no-untyped-def]
    idx_ptr,
    count,
    query_start_ptr,
    cu_logits_ptr,
    rows_ptr,
    rows_stride,
    num_sampled_ptr,
    num_rejected_ptr,
    ids_ptr,
    seq_lens_ptr,
    last_sampled_ptr,
    next_prefill_ptr,
    max_model_len,
    order_out,
    ids_out,
    positions_out,
    last_out,
    slots_out,
    prefix_out,
    drafting_out,
    ROWS: tl.constexpr,
    DEPTH: tl.constexpr,
    VARLEN: tl.constexpr,
    PART: tl.constexpr,
):
    b = tl.program_id(0)
    slot = slot_of(idx_ptr, count, b)
    there = slot >= 0
    first, length, rows, _ = rows_of(b, slot, query_start_ptr, cu_logits_ptr, ROWS, VARLEN)
    seq = tl.load(seq_lens_ptr + b, mask=there, other=0).to(tl.int32)
    sampled = tl.load(num_sampled_ptr + b, mask=there, other=0).to(tl.int32)
    rejected = tl.load(num_rejected_ptr + b, mask=there, other=0).to(tl.int32)
    root = length - rows
    last = tl.where(there, length - rejected - 1, 0)
    r = tl.program_id(1) * PART + tl.arange(0, PART)
    inside = r < length
    alive = r < tl.where(there, length, 0)
    path_ptr = rows_ptr + b.to(tl.int64) * rows_stride
    own_depth = r - root - 1
    own = tl.load(path_ptr + own_depth, mask=alive & (own_depth >= 0) & (own_depth < DEPTH), other=-1).to(tl.int32)
    order = tl.where(own >= 0, root + own, r)
    after = tl.load(path_ptr + own_depth + 1, mask=alive & (own_depth >= -1) & (own_depth + 1 < DEPTH), other=-1).to(
        tl.int32
    )
    after = tl.where(after >= 0, root + after, r + 1)
    token = tl.load(ids_ptr + first + after, mask=alive & (r < last), other=0).to(tl.int32)
    safe = tl.maximum(slot, 0)
    bonus = tl.load(last_sampled_ptr + safe, mask=there & (sampled > 0), other=0).to(tl.int32)
    prompt = tl.load(next_prefill_ptr + safe, mask=there & (sampled == 0), other=0).to(tl.int32)
    token = tl.where(r == last, tl.where(sampled > 0, bonus, prompt), token)
    position = tl.minimum(tl.maximum(seq - length, 0) + r, max_model_len - 1)
    tl.store(ids_out + first + r, token, mask=inside)
    tl.store(positions_out + first + r, position, mask=inside)
    tl.store(order_out + first + r, first + order, mask=inside)
    if tl.program_id(1) == 0:
        tl.store(last_out + b, first + last)
        tl.store(slots_out + b, slot)
        tl.store(prefix_out + b, tl.maximum(seq - rejected, 0))
        tl.store(drafting_out + b, (sampled > 0).to(tl.int8))
