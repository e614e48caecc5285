"""Run by `test_attention_kernels.py`: the split kernel over pages, against the core's own attention, request by request."""

from dataclasses import dataclass, field

import torch
from eagle3_vllm.attention.split_kv import Gpu, Plan, Scratch, paged_tree_attention
from torch import Tensor

from eagle3_serving.attention import AttentionState, attend, tree_attention

SMALL = Plan(splits=4, tile=16, block=16, warps=4, stages=1)
ONE = Plan(splits=1, tile=16, block=16, warps=4, stages=1)
CPU = torch.device("cpu")


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
        scratch = Scratch.make([(self.plan, sum(self.widths))], heads, self.dim, CPU)
        scratch.part.fill_(torch.nan), scratch.lse.fill_(torch.nan)
        prefix = torch.tensor(self.prefix, dtype=torch.int32)
        arguments = q, k, v, mask.view(torch.int8), keys, values, table, prefix, scale, self.plan, scratch
        window = {} if self.window is None else {"window": self.window, "depth_BR": depth.int().contiguous()}
        assert paged_tree_attention(*arguments, out, starts, **window) is out
        error = (out.float() - want).norm() / want.norm()
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


torch.manual_seed(0)
# odd widths, heads and groups, prefixes at the edges of a page; 0 is a request that is not there
WHOLE = Plan(splits=1, tile=128, block=64, warps=4, stages=1)
WIDE = Plan(splits=2, tile=64, block=32, warps=4, stages=1)
for rows, dim, groups, prefix, page, plan in (
    (1, 64, 1, [0, 1, 15, 16, 77], 16, SMALL),
    (2, 80, 2, [0, 31, 32], 32, SMALL),
    (17, 128, 3, [47, 0], 16, WIDE),
    (17, 96, 7, [33], 24, WIDE),
    (61, 64, 4, [70], 16, WIDE),
    (65, 16, 8, [17, 64], 8, WHOLE),
):
    Case(prefix, [rows] * len(prefix), 2 if rows <= 2 else 1, groups, dim, page, plan=plan).check()
# one program for all keys; more programs than blocks; a plan as it is made
made = Plan.of(3, 3, 4, 2, 16, torch.float32, 64, Gpu(132, 1 << 17))
for prefix, plan in (([0, 5, 64], ONE), ([200, 0, 3], Plan(8, 16, 16, 4, 1)), ([0, 5, 64], made)):
    Case(prefix, [3, 3, 3], plan=plan).check()
# requests of different widths, one of them absent
for plan in (ONE, SMALL):
    Case([20, 0, 33, 7], [3, 1, 9, 0], plan=plan, varlen=True).check()
# a draft: a few rows over all that were drafted so far
Case([40, 0], [4, 4], tail=21, plan=SMALL).check()
# windows, which cut the prefix a place later for each depth
for plan in (ONE, SMALL):
    Case([40, 3, 64], [7, 7, 7], window=20, plan=plan).check()
for dtype, most in ((torch.bfloat16, 6e-3), (torch.float16, 1e-3)):  # one rounding (cut off, under the interpreter)
    Case([40, 16], [6, 6], dtype=dtype, most=most).check()


def refuses(says: str, change: dict[str, Tensor | Scratch]) -> None:
    x, out = torch.randn(1, 2, 2, 16), torch.empty(1, 2, 2, 16)
    cache, table, prefix = torch.randn(1, 16, 1, 16), torch.zeros(1, 1).int(), torch.ones(1).int()
    named = {"q": x, "k": x[:, :, :1], "v": x[:, :, :1], "mask_BRS": torch.ones(1, 2, 2, dtype=torch.bool)}
    named |= {"keys_PUKD": cache, "values_PUKD": cache, "table_BN": table, "prefix_B": prefix, "out": out}
    try:
        paged_tree_attention(**named | change, scale=1.0, plan=SMALL)  # type: ignore[arg-type]
    except ValueError as error:
        assert says in str(error)  # noqa: PT017
    else:
        raise AssertionError(f"taken, though {says}")


enough = Scratch.make([(SMALL, 2)], 2, 16, CPU)
refuses("q's last dimension has stride 2", {"q": torch.randn(1, 2, 2, 32)[..., ::2], "scratch": enough})
refuses("scratch for 0 parts", {"scratch": Scratch.make([], 2, 16, CPU)})
# a request that is not there and whose mask shows nothing is 0
out = torch.full((1, 2, 2, 16), torch.nan)
one = torch.randn(1, 2, 2, 16)
nothing, cache = torch.zeros(1, 2, 2, dtype=torch.bool), torch.randn(1, 16, 1, 16)
arguments = one, one[:, :, :1], one[:, :, :1], nothing, cache, cache, torch.zeros(1, 1).int(), torch.zeros(1).int(), 1.0
for plan in (ONE, SMALL):
    assert paged_tree_attention(*arguments, plan, enough, out.fill_(torch.nan)).eq(0).all()
