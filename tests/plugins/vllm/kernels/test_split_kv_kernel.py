"""The split kernel over pages, against the core's own attention, request by request."""

from dataclasses import dataclass, field

import pytest
import torch
from batches import DEVICE
from eagle3_vllm.attention.split_kv import Gpu, Plan, Scratch, paged_tree_attention
from torch import Tensor

from eagle3_serving.attention import AttentionState, attend, tree_attention

SMALL = Plan(splits=4, tile=16, block=16, warps=4, stages=1)
ONE = Plan(splits=1, tile=16, block=16, warps=4, stages=1)
WHOLE = Plan(splits=1, tile=128, block=64, warps=4, stages=1)
WIDE = Plan(splits=2, tile=64, block=32, warps=4, stages=1)
MADE = Plan.of(3, 3, 4, 2, 16, torch.float32, 64, Gpu(132, 1 << 17))


@dataclass
class Case:
    """Requests with `prefix` places in pages, `widths` rows each, and a tail of those rows or of `tail` others."""

    prefix: list[int]
    widths: list[int]
    kv_heads: int = 2
    groups: int = 2
    dim: int = 16
    page: int = 16
    tail: int | None = None
    window: int | None = None
    dtype: torch.dtype = torch.float32
    plan: Plan = SMALL
    varlen: bool = False
    most: float = field(default=2e-5)

    def check(self) -> None:
        torch.manual_seed(0)
        batch, rows, heads = len(self.prefix), max(self.widths), self.kv_heads * self.groups
        scale = self.dim**-0.5
        assert self.varlen or set(self.widths) == {rows}
        pages = max(1, *(-(-p // self.page) for p in self.prefix))
        # pages out of order, of a cache that lies as FlashAttention's: keys and values of a place side by side
        table = torch.randperm(batch * pages + 1)[: batch * pages].view(batch, pages).int()
        cache = torch.randn(batch * pages + 1, self.kv_heads, self.page, 2 * self.dim).to(self.dtype)
        keys, values = cache.transpose(1, 2).split(self.dim, dim=-1)
        held = [table[b, : -(-p // self.page)].long() for b, p in enumerate(self.prefix)]
        own = [
            [x[at].flatten(0, 1)[:p].clone() for x in (keys, values)] for at, p in zip(held, self.prefix, strict=True)
        ]
        for b, p in enumerate(self.prefix):  # what no row may see poisons whoever looks
            cache[table[b, p // self.page :].long(), :, p % self.page :] = torch.nan
            cache[table[b, p // self.page + 1 :].long()] = torch.nan
        tail = rows if self.tail is None else self.tail
        depth = torch.arange(rows).expand(batch, rows) // 3
        mask = (torch.rand(batch, rows, tail + 3) < 0.3)[..., :tail]
        mask[:, torch.arange(rows), torch.arange(tail - rows, tail)] = True
        q = torch.randn(batch, rows, heads, self.dim).to(self.dtype)
        k, v = (torch.randn(batch, tail, self.kv_heads, self.dim).to(self.dtype) for _ in range(2))
        want = torch.zeros(batch, rows, heads, self.dim)
        for b, width in enumerate(self.widths):
            want[b, :width] = self.reference(
                q[b, :width], k[b], v[b], mask[b, :width], own[b], self.prefix[b], depth[b]
            )
        starts = None
        out = torch.full_like(q, torch.nan)
        if self.varlen:
            starts = torch.tensor([0, *self.widths]).cumsum(0).int()
            inside = torch.arange(rows) < torch.tensor(self.widths)[:, None]
            q, k, v, out, want = (x[inside] for x in (q, k, v, out, want))
        scratch = Scratch.make([(self.plan, sum(self.widths))], heads, self.dim, torch.device(DEVICE))
        scratch.part.fill_(torch.nan), scratch.lse.fill_(torch.nan)
        prefix = torch.tensor(self.prefix, dtype=torch.int32)
        q, k, v, out, mask, table, prefix, depth = (
            x.to(DEVICE) for x in (q, k, v, out, mask, table, prefix, depth.int().contiguous())
        )
        keys, values = cache.to(DEVICE).transpose(1, 2).split(self.dim, dim=-1)
        at = keys, values, table, prefix, scale, self.plan, scratch
        window = {} if self.window is None else {"window": self.window, "depth_BR": depth}
        starts = None if starts is None else starts.to(DEVICE)
        assert paged_tree_attention(q, k, v, mask.view(torch.int8), *at, out, starts, **window) is out
        error = (out.float().cpu() - want).norm() / want.norm()
        assert out.dtype == self.dtype and error < self.most, (self, error)

    def reference(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, own: list[Tensor], prefix: int, depth: Tensor
    ) -> Tensor:
        width, scale = len(q), self.dim**-0.5
        if self.varlen:
            k, v, mask = k[:width], v[:width], mask[:, :width]
        q, k, v, own_k, own_v = (x.float()[None] for x in (q, k, v, *own))
        seen = torch.ones(1, width, prefix, dtype=torch.bool)
        if self.window is not None:
            seen &= torch.arange(prefix) > (prefix + depth[:width] - self.window)[:, None]

        def over_prefix(q: Tensor) -> AttentionState:
            return attend(q, own_k, own_v, seen, scale) if prefix else NOTHING(q)

        return tree_attention(q, k, v, mask[None], over_prefix, scale).out_BRAD[0]


def NOTHING(q: Tensor) -> AttentionState:
    return AttentionState(torch.zeros_like(q), torch.full(q.shape[:3], -torch.inf))


# odd widths, heads and groups, prefixes at the edges of a page; 0 is a request that is not there
@pytest.mark.parametrize(
    "rows, dim, groups, prefix, page, plan",
    [
        (1, 64, 1, [0, 1, 15, 16, 77], 16, SMALL),
        (2, 80, 2, [0, 31, 32], 32, SMALL),
        (17, 128, 3, [47, 0], 16, WIDE),
        (17, 96, 7, [33], 24, WIDE),
        (61, 64, 4, [70], 16, WIDE),
        (65, 16, 8, [17, 64], 8, WHOLE),
    ],
)
def test_widths(rows: int, dim: int, groups: int, prefix: list[int], page: int, plan: Plan) -> None:
    Case(prefix, [rows] * len(prefix), 2 if rows <= 2 else 1, groups, dim, page, plan=plan).check()


# one program for all keys; more programs than blocks; a plan as it is made
@pytest.mark.parametrize("prefix, plan", [([0, 5, 64], ONE), ([200, 0, 3], Plan(8, 16, 16, 4, 1)), ([0, 5, 64], MADE)])
def test_cuts(prefix: list[int], plan: Plan) -> None:
    Case(prefix, [3, 3, 3], plan=plan).check()


@pytest.mark.parametrize("plan", [ONE, SMALL])
def test_requests_of_different_widths(plan: Plan) -> None:
    Case([20, 0, 33, 7], [3, 1, 9, 0], plan=plan, varlen=True).check()


def test_a_draft_over_all_that_was_drafted() -> None:
    Case([40, 0], [4, 4], tail=21).check()


@pytest.mark.parametrize("plan", [ONE, SMALL])
def test_windows(plan: Plan) -> None:
    """They cut the prefix a place later for each depth."""
    Case([40, 3, 64], [7, 7, 7], window=20, plan=plan).check()


# one rounding (the interpreter cuts off where a GPU rounds)
@pytest.mark.parametrize("dtype, most", [(torch.bfloat16, 6e-3), (torch.float16, 1e-3)])
def test_low_precision(dtype: torch.dtype, most: float) -> None:
    Case([40, 16], [6, 6], dtype=dtype, most=most).check()


def arguments(**change: object) -> dict[str, object]:
    x, cache = torch.randn(1, 2, 2, 16), torch.randn(1, 16, 1, 16)
    named = {"q": x, "k": x[:, :, :1], "v": x[:, :, :1], "mask_BRS": torch.zeros(1, 2, 2, dtype=torch.bool)}
    named |= {"keys_PUKD": cache, "values_PUKD": cache, "table_BN": torch.zeros(1, 1).int()}
    named |= {"prefix_B": torch.zeros(1).int(), "out": torch.full((1, 2, 2, 16), torch.nan)}
    placed = {name: tensor.to(DEVICE) for name, tensor in named.items()}
    scratch = Scratch.make([(SMALL, 2)], 2, 16, torch.device(DEVICE))
    return placed | {"scale": 1.0, "plan": SMALL, "scratch": scratch} | change


@pytest.mark.parametrize("plan", [ONE, SMALL])
def test_a_request_that_is_not_there_is_0(plan: Plan) -> None:
    assert paged_tree_attention(**arguments(plan=plan)).eq(0).all()  # type: ignore[arg-type]


def test_what_it_cannot_take() -> None:
    with pytest.raises(ValueError, match="q's last dimension has stride 2"):
        paged_tree_attention(**arguments(q=torch.randn(1, 2, 2, 32)[..., ::2]))  # type: ignore[arg-type]
    nothing = Scratch.make([], 2, 16, torch.device(DEVICE))
    with pytest.raises(ValueError, match="scratch for 0 parts, needed are 4 splits x 2 rows x 2 heads"):
        paged_tree_attention(**arguments(scratch=nothing))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="depths"):
        paged_tree_attention(**arguments(window=8))  # type: ignore[arg-type]
