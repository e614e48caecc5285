"""A prefix's attention and a tree's block, merged, against the core's own."""

import pytest
import torch
from batches import DEVICE
from eagle3_vllm.attention.tree_block import merged
from torch import Tensor

from eagle3_serving.attention import AttentionState, attend, tree_attention


def within(x: Tensor) -> Tensor:
    """The same values as a part of something larger: rows and requests do not lie side by side."""
    holder = torch.full((x.shape[0], x.shape[1] + 1, x.shape[2] + 2, *x.shape[3:]), torch.nan, dtype=x.dtype)
    holder[:, : x.shape[1], 1 : x.shape[2] + 1] = x
    return holder.to(DEVICE)[:, : x.shape[1], 1 : x.shape[2] + 1]


@pytest.mark.parametrize(
    "batch, rows, tail, heads, kv_heads, dim, prefix",
    [
        (2, 1, 1, 4, 2, 16, 7),
        (2, 2, 2, 2, 2, 64, 33),
        (2, 17, 17, 3, 1, 80, 33),
        (1, 61, 61, 4, 2, 96, 7),
        (1, 65, 65, 2, 2, 128, 0),
        (2, 10, 30, 3, 1, 64, 33),  # a draft's rows over all that were drafted
    ],
)
def test_whole(batch: int, rows: int, tail: int, heads: int, kv_heads: int, dim: int, prefix: int) -> None:
    torch.manual_seed(rows)
    q = torch.randn(batch, rows, heads, dim)
    k, v = (torch.randn(batch, prefix + tail, kv_heads, dim) for _ in range(2))
    mask = torch.rand(batch, rows, tail + 3) < 0.4
    mask[:, torch.arange(rows), torch.arange(tail - rows, tail)] = True
    scale, seen = dim**-0.5, mask.to(DEVICE)[..., :tail]
    before = attend(q, k[:, :prefix], v[:, :prefix], None, scale)
    want = tree_attention(q, k[:, prefix:], v[:, prefix:], mask[..., :tail], lambda _: before, scale).out_BRAD
    # as FlashAttention gives it: [A, B * R], and more rows than are asked for
    lse_AT = torch.full((heads, batch * rows + 3), torch.nan)
    lse_AT[:, : batch * rows] = before.lse_BRA.flatten(0, 1).T
    lse = lse_AT.to(DEVICE)[:, : batch * rows].T.unflatten(0, (batch, rows))
    out = within(torch.full_like(want, torch.nan))
    parts, past = (within(q), within(k[:, prefix:]), within(v[:, prefix:])), before.out_BRAD.to(DEVICE)
    assert merged(*parts, seen, past, lse, scale, out=out) is out
    assert (out.cpu() - want).abs().max() < 1e-5
    assert torch.equal(merged(*parts, seen.view(torch.int8), past, lse, scale), out)
    assert torch.equal(merged(*parts, seen, past, lse, scale, out=past), out)  # in place


def test_nothing_before_it() -> None:
    """FlashAttention 2 says +inf where there was no key, FlashAttention 3 -inf."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 3, heads, 16).to(DEVICE) for heads in (4, 2, 2))
    mask, past = torch.eye(3).bool()[None].to(DEVICE), torch.zeros(1, 3, 4, 16).to(DEVICE)
    want = v.repeat_interleave(2, dim=2)  # a row that sees itself alone
    for nothing in (float("inf"), -float("inf")):
        lse = torch.full((1, 3, 4), nothing).to(DEVICE)
        assert (merged(q, k, v, mask, past, lse, 0.25) - want).abs().max() < 1e-6


# prefix and result are each rounded once (the interpreter cuts off where a GPU rounds)
@pytest.mark.parametrize("dtype, most", [(torch.bfloat16, 8e-3), (torch.float16, 1e-3)])
def test_low_precision(dtype: torch.dtype, most: float) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, n, heads, 64).to(DEVICE, dtype) for n, heads in ((17, 4), (40, 2), (40, 2)))
    mask = (torch.rand(2, 17, 17) < 0.4).logical_or(torch.eye(17).bool()).to(DEVICE)
    before = attend(*(x.float() for x in (q, k[:, :23], v[:, :23])))
    tail = [x.float() for x in (q, k[:, 23:], v[:, 23:])]
    exact = tree_attention(*tail, mask, lambda _: AttentionState(*before)).out_BRAD
    got = merged(q, k[:, 23:], v[:, 23:], mask, before.out_BRAD.to(dtype), before.lse_BRA, 0.125)
    assert got.dtype == dtype and (got.float() - exact).norm() / exact.norm() < most


def test_strides_that_it_cannot_read() -> None:
    x = torch.randn(1, 2, 2, 32)[..., ::2]
    with pytest.raises(ValueError, match="q's last dimension has stride 2"):
        merged(x, x, x, torch.ones(1, 2, 2, dtype=torch.bool), x, torch.zeros(1, 2, 2), 1.0)
