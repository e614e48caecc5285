"""The dense block of a tree, merged with what the prefix gave, in one small Triton kernel for CUDA.

What it computes is `eagle3_serving.attention.tree_attention`, which tests hold it to.

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
    heads,
    groups,
    head_dim,
    ROWS: tl.constexpr,
    TAIL: tl.constexpr,
    DIM: tl.constexpr,
):
    request = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    block = tl.program_id(2)
    kv_heads = heads // groups
    row = block * ROWS + tl.arange(0, ROWS)
    key = tl.arange(0, TAIL)
    dim = tl.arange(0, DIM)
    row_dim = (row < rows)[:, None] & (dim < head_dim)[None, :]
    key_dim = (key < tail)[:, None] & (dim < head_dim)[None, :]
    at_row = ((request * rows + row)[:, None] * heads + head) * head_dim + dim[None, :]
    at_key = ((request * tail + key)[:, None] * kv_heads + head // groups) * head_dim + dim[None, :]
    # the block is small: in fp32 it costs little, and nothing is rounded twice
    q = tl.load(q_ptr + at_row, mask=row_dim, other=0.0).to(tl.float32)
    k = tl.load(k_ptr + at_key, mask=key_dim, other=0.0).to(tl.float32)
    v = tl.load(v_ptr + at_key, mask=key_dim, other=0.0).to(tl.float32)
    inside = (row < rows)[:, None] & (key < tail)[None, :]
    seen = tl.load(mask_ptr + (request * rows + row)[:, None] * tail + key[None, :], mask=inside, other=0)
    scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
    scores = tl.where(seen != 0, scores, -float("inf"))
    # every row sees itself, so only rows past the end have nothing to see
    best = tl.max(scores, axis=1)
    best = tl.where(best == -float("inf"), 0.0, best)
    weights = tl.exp(scores - best[:, None])
    total = tl.sum(weights, axis=1)
    tail_out = tl.dot(weights, v, input_precision="ieee")
    lse = tl.load(lse_ptr + (request * rows + row) * heads + head, mask=row < rows, other=-float("inf"))
    # both parts over the larger of their exponents
    top = tl.maximum(lse, best)
    left = tl.exp(lse - top)
    right = tl.exp(best - top)
    prefix = tl.load(prefix_ptr + at_row, mask=row_dim, other=0.0).to(tl.float32)
    prefix = tl.where((left > 0)[:, None], prefix * left[:, None], 0.0)
    share = left + total * right  # 0 in rows past the end alone
    out = (prefix + tail_out * right[:, None]) / tl.where(share > 0, share, 1.0)[:, None]
    tl.store(out_ptr + at_row, out.to(out_ptr.dtype.element_ty), mask=row_dim)


def merged(
    q_BRAD: Tensor, k_BSKD: Tensor, v_BSKD: Tensor, mask_BRS: Tensor, prefix_BRAD: Tensor, lse_BRA: Tensor, scale: float
) -> Tensor:
    """[B, R, A, D] in q's dtype: attention over the tail under its mask, merged with the prefix's.

    Every row sees at least one row of the tail. `lse_BRA` fp32. At most some hundred rows in a tail: it is one block.
    """
    q_BRAD, k_BSKD, v_BSKD, prefix_BRAD = (x.contiguous() for x in (q_BRAD, k_BSKD, v_BSKD, prefix_BRAD))
    batch, rows, heads, head_dim = q_BRAD.shape
    tail = k_BSKD.shape[1]
    out_BRAD = torch.empty_like(q_BRAD)
    block = min(64, max(16, triton.next_power_of_2(rows)))
    _merged_kernel[(batch, heads, triton.cdiv(rows, block))](
        q_BRAD,
        k_BSKD,
        v_BSKD,
        mask_BRS.to(torch.int8).contiguous(),
        prefix_BRAD,
        lse_BRA.float().contiguous(),
        out_BRAD,
        scale,
        rows,
        tail,
        heads,
        heads // k_BSKD.shape[2],
        head_dim,
        ROWS=block,
        TAIL=max(16, triton.next_power_of_2(tail)),
        DIM=max(16, triton.next_power_of_2(head_dim)),
    )
    return out_BRAD
