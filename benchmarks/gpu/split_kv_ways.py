"""The vLLM plugin's split-KV kernel over pages, as a verify pass calls it: all of a layer's attention in at most two launches.

`EAGLE3_PLANS` (splits,tile,block,warps,stages with semicolons between) adds other cuts of the work than the plugin's own. On
a CPU the kernel's meaning in PyTorch stands in its place.

Shape letters as in `verify_case.py`; P pages of all requests, U places of a page, N pages of a request.
"""

import math
import os
from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.plugin_ways import KERNEL, load_kernel
from benchmarks.gpu.verify_case import Case
from eagle3_serving.attention import prefix_attention, tree_attention
from eagle3_serving.errors import InputError

PAGE = 16
_loaded: list[ModuleType] = []


def load() -> ModuleType:
    """Raises ImportError as `plugin_ways.load_kernel` does."""
    if not _loaded:
        _loaded.append(load_kernel(KERNEL.with_name("split_kv.py")))
    return _loaded[0]


def paged(k_BSKD: Tensor, v_BSKD: Tensor, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Keys and values [P, U, K, D] side by side as in vLLM's cache, pages in random order, and the table int32 [B, N]."""
    batch, length = k_BSKD.shape[:2]
    pages = math.ceil(length / PAGE)
    padded = k_BSKD.new_zeros(batch, pages * PAGE, k_BSKD.shape[2], 2 * k_BSKD.shape[3])
    padded[:, :length] = torch.cat([k_BSKD, v_BSKD], dim=-1)
    order = torch.randperm(batch * pages, generator=torch.Generator().manual_seed(seed)).to(k_BSKD.device)
    cache = torch.empty_like(padded).view(batch * pages, PAGE, *padded.shape[2:])
    cache[order] = padded.view(cache.shape)
    keys, values = cache.split(k_BSKD.shape[3], dim=-1)
    return keys, values, order.view(batch, pages).int()


def split_kv(case: Case, cut: tuple[int, ...] | None = None) -> Callable[[], Tensor]:
    k_BRKD, v_BRKD = (x[:, case.prefix :].contiguous() for x in (case.k_BSKD, case.v_BSKD))
    device, (batch, rows, heads, size) = case.q_BRAD.device, case.q_BRAD.shape
    if device.type != "cuda":
        past = [x[:, : case.prefix].transpose(1, 2).contiguous() for x in (case.k_BSKD, case.v_BSKD)]
        prefix = partial(prefix_attention, k_BKSD=past[0], v_BKSD=past[1])
        return lambda: tree_attention(case.q_BRAD, k_BRKD, v_BRKD, case.layout.ancestors_BNN, prefix).out_BRAD
    kernel = load()
    shape = batch, rows, heads, k_BRKD.shape[2], size, case.q_BRAD.dtype
    plan = kernel.Plan(*cut) if cut else kernel.Plan.of(*shape, case.prefix, kernel.Gpu.of(device))
    scratch = kernel.Scratch.make([(plan, batch * rows)], heads, size, device)
    keys, values, table_BN = paged(case.k_BSKD[:, : case.prefix], case.v_BSKD[:, : case.prefix], case.prefix)
    prefix_B = torch.full((batch,), case.prefix, dtype=torch.int32, device=device)
    mask_BRR = case.layout.ancestors_BNN.to(torch.int8)
    scale, out_BRAD = size**-0.5, torch.empty_like(case.q_BRAD)

    def run() -> Tensor:
        at: tuple[Any, ...] = keys, values, table_BN, prefix_B, scale, plan, scratch, out_BRAD
        out: Tensor = kernel.paged_tree_attention(case.q_BRAD, k_BRKD, v_BRKD, mask_BRR, *at)
        return out

    return run


def ways() -> dict[str, Callable[[Case], Callable[[], Tensor]]]:
    """By name: the plugin's own plan, and those that `EAGLE3_PLANS` asks for."""
    load()
    told = os.environ.get("EAGLE3_PLANS", "")
    try:
        cuts = [tuple(int(number) for number in plan.split(",")) for plan in filter(None, told.split(";"))]
    except ValueError:
        cuts = [()]
    if any(len(cut) != 5 for cut in cuts):
        raise InputError(f"EAGLE3_PLANS is {told!r}: splits,tile,block,warps,stages with semicolons between")
    return {"split-kv": split_kv} | {f"split-kv({','.join(map(str, cut))})": partial(split_kv, cut=cut) for cut in cuts}
