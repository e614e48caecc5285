"""Run by `test_attention_kernels.py`: a prefix's attention and a tree's block, merged, against the core's own."""

import itertools

import torch
from eagle3_vllm.attention.tree_block import merged
from torch import Tensor

from eagle3_serving.attention import AttentionState, attend, tree_attention


def within(wide: Tensor, *shape: int) -> Tensor:
    """The same values as a part of something larger: rows and requests do not lie side by side."""
    holder = torch.full((shape[0], shape[1] + 1, shape[2] + 2, *shape[3:]), torch.nan, dtype=wide.dtype)
    holder[:, : shape[1], 1 : shape[2] + 1] = wide
    return holder[:, : shape[1], 1 : shape[2] + 1]


def check(batch: int, rows: int, tail: int, heads: int, kv_heads: int, dim: int, prefix: int) -> None:
    q = torch.randn(batch, rows, heads, dim)
    k, v = (torch.randn(batch, prefix + tail, kv_heads, dim) for _ in range(2))
    mask = (torch.rand(batch, rows, tail + 3) < 0.4)[..., :tail]
    mask[:, torch.arange(rows), torch.arange(tail - rows, tail)] = True
    scale = dim**-0.5
    before = attend(q, k[:, :prefix], v[:, :prefix], None, scale)
    want = tree_attention(q, k[:, prefix:], v[:, prefix:], mask, lambda _: before, scale).out_BRAD
    # as FlashAttention gives it: [A, B * R], and more rows than are asked for
    lse_AT = torch.full((heads, batch * rows + 3), torch.nan)
    lse_AT[:, : batch * rows] = before.lse_BRA.flatten(0, 1).T
    lse = lse_AT[:, : batch * rows].T.unflatten(0, (batch, rows))
    out = within(torch.full_like(want, torch.nan), *want.shape)
    parts = within(q, *q.shape), *(within(x[:, prefix:], batch, tail, kv_heads, dim) for x in (k, v))
    found = merged(*parts, mask, before.out_BRAD, lse, scale, out=out)
    assert found is out and (out - want).abs().max() < 1e-5, (out - want).abs().max()
    again = merged(*parts, mask.to(torch.int8), before.out_BRAD.clone(), lse, scale)
    assert torch.equal(again, out)
    in_place = before.out_BRAD.clone()
    assert torch.equal(merged(*parts, mask, in_place, lse, scale, out=in_place), out)
    # prefix and result are each rounded once (the interpreter cuts off where a GPU rounds)
    for dtype, most in ((torch.bfloat16, 8e-3), (torch.float16, 1e-3)):
        small = [x.to(dtype) for x in (q, k, v)]
        state = attend(*(x.float() for x in (small[0], small[1][:, :prefix], small[2][:, :prefix])), None, scale)
        tails = [x.float() for x in (small[0], small[1][:, prefix:], small[2][:, prefix:])]
        exact = tree_attention(*tails, mask, lambda _, state=state: AttentionState(*state), scale).out_BRAD
        got = merged(
            small[0], small[1][:, prefix:], small[2][:, prefix:], mask, state.out_BRAD.to(dtype), state.lse_BRA, scale
        )
        error = (got.float() - exact).norm() / exact.norm()
        assert got.dtype == dtype and error < most, (dtype, error)


torch.manual_seed(0)
for rows, (heads, kv_heads), dim in zip(
    (1, 2, 17, 61, 65), itertools.cycle([(4, 2), (2, 2), (3, 1)]), (16, 64, 80, 96, 128), strict=False
):
    check(2 if rows < 61 else 1, rows, rows, heads, kv_heads, dim, (0, 7, 33)[rows % 3])
check(2, 10, 30, 3, 1, 64, 33)
try:
    x = torch.randn(1, 2, 2, 32)[..., ::2]
    merged(x, x, x, torch.ones(1, 2, 2, dtype=torch.bool), x, torch.zeros(1, 2, 2), 1.0)
except ValueError as error:
    assert "q's last dimension has stride 2" in str(error)  # noqa: PT017
else:
    raise AssertionError("strides that the kernel cannot read were taken")
