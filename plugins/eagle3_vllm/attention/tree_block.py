"""The dense block of a tree, merged with what the prefix gave, in one small Triton kernel for CUDA.

What it computes is `eagle3_serving.attention.tree_attention`, which tests hold it to. Operands are read where they lie and
the result goes where it is wanted: nothing is copied before or after it.

Shape letters: B requests, R rows, S rows of the tail, A query heads, K key-value heads, G = A / K, D head size.
"""

import torch
from torch import Tensor
from vllm.triton_utils import tl, triton


@triton.jit
def _merged_kernel(  # type: ignore[no-untyped-def]
    q_ptr,
    k_ptr,
    v_ptr,
    mask_ptr,
    prefix_ptr,
    lse_ptr,
    out_ptr,
    scale,
    rows,
    tail,
    groups,
    head_dim,
    q_request,
    q_row,
    q_head,
    k_request,
    k_row,
    k_head,
    v_request,
    v_row,
    v_head,
    mask_request,
    mask_row,
    prefix_request,
    prefix_row,
    prefix_head,
    lse_request,
    lse_row,
    lse_head,
    out_request,
    out_row,
    out_head,
    ROWS: tl.constexpr,
    TAIL: tl.constexpr,
    DIM: tl.constexpr,
    WIDE: tl.constexpr,
):
    # a request's first row in 64 bits, places inside it in 32: fewer registers
    request = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    row = tl.program_id(2) * ROWS + tl.arange(0, ROWS)
    key = tl.arange(0, TAIL)
    dim = tl.arange(0, DIM)
    row_dim = (row < rows)[:, None] & (dim < head_dim)[None, :]
    key_dim = (key < tail)[:, None] & (dim < head_dim)[None, :]
    first_q = q_ptr + request * q_request + head * q_head
    first_k = k_ptr + request * k_request + head // groups * k_head
    first_v = v_ptr + request * v_request + head // groups * v_head
    q = tl.load(first_q + row[:, None] * q_row + dim[None, :], mask=row_dim, other=0.0)
    k = tl.load(first_k + key[:, None] * k_row + dim[None, :], mask=key_dim, other=0.0)
    v = tl.load(first_v + key[:, None] * v_row + dim[None, :], mask=key_dim, other=0.0)
    if WIDE:  # the interpreter would multiply the bits of bf16 as integers
        q, k, v = q.to(tl.float32), k.to(tl.float32), v.to(tl.float32)
    inside = (row < rows)[:, None] & (key < tail)[None, :]
    seen = tl.load(mask_ptr + request * mask_request + row[:, None] * mask_row + key[None, :], mask=inside, other=0)
    # tensor cores: 16-bit products are exact and summed in fp32, fp32 goes in three passes of tf32
    scores = tl.dot(q, tl.trans(k), input_precision="tf32x3") * scale
    scores = tl.where(seen != 0, scores, -float("inf"))
    # every row sees itself, so only rows past the end have nothing to see
    best = tl.max(scores, axis=1)
    best = tl.where(best == -float("inf"), 0.0, best)
    weights = tl.exp(scores - best[:, None])
    total = tl.sum(weights, axis=1)
    high = weights.to(v.dtype)
    tail_out = tl.dot(high, v, input_precision="tf32x3")
    if v.dtype != tl.float32:  # what rounding took from the weights
        tail_out = tl.dot((weights - high.to(tl.float32)).to(v.dtype), v, tail_out)
    lse_at = lse_ptr + request * lse_request + row * lse_row + head * lse_head
    lse = tl.load(lse_at, mask=row < rows, other=-float("inf"))
    # FlashAttention 2 says +inf of a prefix without a row, FlashAttention 3 -inf
    lse = tl.where(lse == float("inf"), -float("inf"), lse)
    # both parts over the larger of their exponents
    top = tl.maximum(lse, best)
    left = tl.exp(lse - top)
    right = tl.exp(best - top)
    first = prefix_ptr + request * prefix_request + head * prefix_head
    prefix = tl.load(first + row[:, None] * prefix_row + dim[None, :], mask=row_dim, other=0.0).to(tl.float32)
    prefix = tl.where((left > 0)[:, None], prefix * left[:, None], 0.0)
    share = left + total * right  # 0 in rows past the end alone
    out = (prefix + tail_out * right[:, None]) / tl.where(share > 0, share, 1.0)[:, None]
    to = out_ptr + request * out_request + head * out_head + row[:, None] * out_row + dim[None, :]
    tl.store(to, out.to(out_ptr.dtype.element_ty), mask=row_dim)


def merged(
    q_BRAD: Tensor,
    k_BSKD: Tensor,
    v_BSKD: Tensor,
    mask_BRS: Tensor,
    prefix_BRAD: Tensor,
    lse_BRA: Tensor,
    scale: float,
    out: Tensor | None = None,
) -> Tensor:
    """`out` [B, R, A, D]: attention over the tail under its mask, merged with the prefix's; made in q's dtype if not given.

    `mask_BRS` bool or int8, `lse_BRA` fp32: FlashAttention's [A, B * R] as `lse_AT.T.unflatten(0, (B, R))` does. Every row
    sees at least one row of the tail, which is one block: at most some hundred rows. Any strides but the last dimension's,
    1 in all but `lse_BRA`; `out` may be `prefix_BRAD`. Raises ValueError for other strides.
    """
    batch, rows, heads, head_dim = q_BRAD.shape
    tail = k_BSKD.shape[1]
    out = torch.empty(q_BRAD.shape, dtype=q_BRAD.dtype, device=q_BRAD.device) if out is None else out
    for name, x in (
        ("q", q_BRAD),
        ("k", k_BSKD),
        ("v", v_BSKD),
        ("mask", mask_BRS),
        ("prefix", prefix_BRAD),
        ("out", out),
    ):
        if x.stride(-1) != 1:
            raise ValueError(f"{name}'s last dimension has stride {x.stride(-1)}; the kernel reads it as 1")
    # fp32 takes twice the registers: 16 rows at a time do not spill
    block = 16 if q_BRAD.dtype == torch.float32 else min(64, max(16, triton.next_power_of_2(rows)))
    _merged_kernel[(batch, heads, triton.cdiv(rows, block))](
        q_BRAD,
        k_BSKD,
        v_BSKD,
        mask_BRS.view(torch.int8),
        prefix_BRAD,
        lse_BRA,
        out,
        scale,
        rows,
        tail,
        heads // k_BSKD.shape[2],
        head_dim,
        *q_BRAD.stride()[:3],
        *k_BSKD.stride()[:3],
        *v_BSKD.stride()[:3],
        *mask_BRS.stride()[:2],
        *prefix_BRAD.stride()[:3],
        *lse_BRA.stride(),
        *out.stride()[:3],
        ROWS=block,
        TAIL=max(16, triton.next_power_of_2(tail)),
        DIM=max(16, triton.next_power_of_2(head_dim)),
        WIDE=triton.knobs.runtime.interpret,
        num_warps=4 if rows <= 32 and q_BRAD.dtype != torch.float32 else 8,
    )
    return out
