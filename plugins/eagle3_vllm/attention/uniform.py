"""Attention of a pass that is all trees, over buffers that keep their places: what stands inside a CUDA graph.

Two ways by name. "split" is our kernel over pages and tree at once (`split_kv`), for any backend whose cache it can read, and
for requests of different widths. "flash" is FlashAttention over the prefix and the tree's block merged in (`tree_block`),
for trees of one width. Neither reads a value of the device or makes a tensor of a size that hangs on one.

Shape letters: B requests, R tree rows, T rows of a pass, A query heads, K key-value heads, D head size, N pages of a request.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from eagle3_vllm.attention.layout import pages
from eagle3_vllm.attention.split_kv import Gpu, Plan, Scratch, paged_tree_attention
from eagle3_vllm.attention.tree_block import merged

Way = Literal["split", "flash"]
# q [T, A, D], keys and values of the cache, the rows -> [T, A, D] and its sums of exponentials fp32 [A, T]
OverPrefix = Callable[[Tensor, Tensor, Tensor, "UniformRows"], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class UniformRows:
    """The trees of such a pass; goes on a layer's metadata as `eagle3_rows`. All tensors are the same ones at each replay.

    `mask_BRR` int8: what a row sees of its tree. `prefix_B` int32: rows before the root, 0 in a request that is only there
    to fill the graph. `table_BN` int32. `starts_B1` int32: the pass's first row of each request, and the end.
    `longest`: no prefix is above it. `varlen`: requests are as wide as `starts_B1` says, at most R.
    """

    mask_BRR: Tensor
    prefix_B: Tensor
    table_BN: Tensor
    starts_B1: Tensor
    longest: int
    plan: Plan
    scratch: Scratch
    way: Way = "split"
    varlen: bool = False


class Plans:
    """How every pass of a server is cut, and the scratch that all share. `passes`: (requests, rows a request) of each."""

    def __init__(
        self,
        way: Way,
        heads: int,
        kv_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        longest: int,
        device: torch.device,
        passes: Iterable[tuple[int, int]],
    ) -> None:
        self.way, self.longest = way, longest
        self._shape = heads, kv_heads, head_dim, dtype, longest, Gpu.of(device)
        self._known: dict[tuple[int, int], Plan] = {}
        shapes = [(self.of(*one), one[0] * one[1]) for one in passes] if way == "split" else []
        self.scratch = Scratch.make(shapes, heads, head_dim, device)

    def of(self, batch: int, rows: int) -> Plan:
        if (batch, rows) not in self._known:
            self._known[batch, rows] = Plan.of(batch, rows, *self._shape)
        return self._known[batch, rows]

    def rows(
        self, mask_BRR: Tensor, prefix_B: Tensor, table_BN: Tensor, starts_B1: Tensor, varlen: bool
    ) -> UniformRows:
        """What one pass's attention is told."""
        batch, rows = mask_BRR.shape[:2]
        at = mask_BRR, prefix_B, table_BN[:batch], starts_B1, self.longest, self.of(batch, rows), self.scratch
        return UniformRows(*at, way=self.way, varlen=varlen)


def attend_uniform(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    kv_cache: Tensor,
    rows: UniformRows,
    output: Tensor,
    scale: float,
    head_dim: int,
    over_prefix: OverPrefix | None = None,
) -> Tensor:
    """`output` [T, A * D] or [T, A, D], its tree rows written. `query`, `key`, `value` as vLLM hands them to a layer, of at
    least the trees' rows. Raises ValueError for the way "flash" without `over_prefix`, or with requests of several widths.
    """
    keys, values = pages(kv_cache, head_dim)
    q, k, v, out = (x.view(len(x), -1, head_dim) for x in (query, key, value, output))
    if rows.varlen:
        if rows.way == "flash":
            raise ValueError('the way "flash" takes trees of one width; "split" takes any')
        at = rows.table_BN, rows.prefix_B, scale, rows.plan, rows.scratch
        paged_tree_attention(q, k, v, rows.mask_BRR, keys, values, *at, out, rows.starts_B1)
        return output
    batch, width = rows.mask_BRR.shape[:2]
    q_BRAD, k_BRKD, v_BRKD, out_BRAD = (x[: batch * width].unflatten(0, (batch, width)) for x in (q, k, v, out))
    if rows.way == "flash":
        if over_prefix is None:
            raise ValueError('the way "flash" is FlashAttention\'s own; this backend has "split"')
        prefix_TAD, lse_AT = over_prefix(q[: batch * width], keys, values, rows)
        prefix_BRAD, lse_BRA = prefix_TAD.unflatten(0, (batch, width)), lse_AT.T.unflatten(0, (batch, width))
        merged(q_BRAD, k_BRKD, v_BRKD, rows.mask_BRR, prefix_BRAD, lse_BRA, scale, out=out_BRAD)
        return output
    at = rows.table_BN, rows.prefix_B, scale, rows.plan, rows.scratch
    paged_tree_attention(q_BRAD, k_BRKD, v_BRKD, rows.mask_BRR, keys, values, *at, out_BRAD)
    return output


class SplitPrefix:
    """A `paged.Prefix` by the split kernel, for passes outside graphs: its scratch is made anew."""

    def __init__(self, layer: Any, table_BN: Tensor, prefix_B: Tensor, longest: int, window: int | None = None) -> None:
        self.scale: float = layer.impl.scale
        self.window = window
        self.keys, self.values = pages(layer.kv_cache, layer.head_size)
        self.table_BN, self.prefix_B, self.longest = table_BN.int(), prefix_B.int(), longest

    def attend(self, q_BRAD: Tensor, k_BSKD: Tensor, v_BSKD: Tensor, mask_BRS: Tensor, past: int = 0) -> Tensor:
        batch, rows, heads, head_dim = q_BRAD.shape
        shape = batch, rows, heads, k_BSKD.shape[2], head_dim, q_BRAD.dtype
        plan = Plan.of(*shape, self.longest, Gpu.of(q_BRAD.device))
        scratch = Scratch.make([(plan, batch * rows)], heads, head_dim, q_BRAD.device)
        out_BRAD = torch.empty(q_BRAD.shape, dtype=q_BRAD.dtype, device=q_BRAD.device)
        at = self.keys, self.values, self.table_BN, self.prefix_B, self.scale, plan, scratch
        past_BR = None
        if self.window is not None:
            past_BR = torch.full((batch, rows), past, dtype=torch.int32, device=q_BRAD.device)
        windowed = None, self.window, past_BR
        return paged_tree_attention(q_BRAD, k_BSKD, v_BSKD, mask_BRS, *at, out_BRAD, *windowed)
