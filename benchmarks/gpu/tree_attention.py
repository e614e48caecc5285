"""Step 3: attention of a verify pass, whole under a mask or split and merged, against a dense reference and the floor.

`masked` is SDPA under the dense mask (the embedded engine's way); `split` a maskless prefix pass with its log-sum-exp and
a small dense block over the tree, merged; `split-triton` the same with the vLLM plugin's block kernel; `split-kv` the
plugin's one kernel over pages and tree; with FlashInfer installed, `flashinfer-mask` its paged prefill under the bit-packed
tree mask and `flashinfer-split` its paged prefill over the prefix alone, with PyTorch's block. Every way is held against
fp32 arithmetic on the same inputs before it is timed; several sets of inputs rotate, so that the cache never serves them.
The floor is one reading of the keys and values. `EAGLE3_GRID` (batch,nodes,prefix with semicolons between) asks for other shapes.

Shape letters: B requests, R rows (root first), S keys, K key-value heads, D head size.
"""

import math
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.gpu import plugin_ways, split_kv_ways
from benchmarks.gpu.probe import floors
from benchmarks.gpu.settings import Settings
from benchmarks.gpu.sink import Sink
from benchmarks.gpu.timing import Captured, measure
from benchmarks.gpu.verify_case import Case, Way
from eagle3_serving.attention import attend, prefix_attention, tree_attention
from eagle3_serving.errors import InputError

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 1e-2}
GIVE_UP = 3  # shapes refused one after the other: a kernel that cannot be built takes a minute each time
CACHE = 128 << 20  # bytes that a set of inputs must exceed together, or it would be read from the cache


def masked(case: Case) -> Callable[[], Tensor]:
    groups = case.q_BRAD.shape[2] // case.k_BSKD.shape[2]
    bias_BRS = torch.zeros(case.mask_BRS.shape, dtype=case.q_BRAD.dtype, device=case.q_BRAD.device)
    bias_B1LS = bias_BRS.masked_fill(~case.mask_BRS, -torch.inf).repeat(1, groups, 1)[:, None]
    k_BKSD, v_BKSD = (x.transpose(1, 2).contiguous() for x in (case.k_BSKD, case.v_BSKD))

    def run() -> Tensor:
        q_BKLD = case.q_BRAD.unflatten(2, (-1, groups)).permute(0, 2, 3, 1, 4).flatten(2, 3)
        out_BKLD = scaled_dot_product_attention(q_BKLD, k_BKSD, v_BKSD, bias_B1LS)
        out_BRAD: Tensor = out_BKLD.unflatten(2, (groups, -1)).permute(0, 3, 1, 2, 4).flatten(2, 3)
        return out_BRAD

    return run


def split(case: Case) -> Callable[[], Tensor]:
    k_BKSD, v_BKSD = (x[:, : case.prefix].transpose(1, 2).contiguous() for x in (case.k_BSKD, case.v_BSKD))
    k_BRKD, v_BRKD = (x[:, case.prefix :].contiguous() for x in (case.k_BSKD, case.v_BSKD))

    def run() -> Tensor:
        ancestors_BRR = case.layout.ancestors_BNN
        prefix = partial(prefix_attention, k_BKSD=k_BKSD, v_BKSD=v_BKSD)
        return tree_attention(case.q_BRAD, k_BRKD, v_BRKD, ancestors_BRR, prefix).out_BRAD

    return run


def ways(device: torch.device) -> dict[str, Way]:
    """By name; FlashInfer's on a GPU where it can be imported."""
    found: dict[str, Way] = {"masked": masked, "split": split}
    try:
        plugin_ways.load_kernel()
        found["split-triton"] = plugin_ways.split_triton
        found |= split_kv_ways.ways()
    except InputError:
        raise
    except Exception as error:  # a plugin of another version must not take the other ways down
        print(f"without the vLLM plugin's kernels: {error}", flush=True)
    if device.type != "cuda":
        return found
    try:
        from benchmarks.gpu import flashinfer_ways
    except ImportError as error:
        print(f"without FlashInfer: {error}", flush=True)
    else:
        found |= flashinfer_ways.WAYS
    return found


def reference(case: Case) -> Tensor:
    """In fp32, request by request: the whole at once would need the memory of all scores."""
    q, k, v, seen = case.q_BRAD.float(), case.k_BSKD.float(), case.v_BSKD.float(), case.mask_BRS
    return torch.cat([attend(q[b, None], k[b, None], v[b, None], seen[b, None]).out_BRAD for b in range(len(q))])


def grid(settings: Settings) -> list[tuple[int, int, int]]:
    """(batch, nodes, prefix); at full size keys in whole 16s, as SDPA's mask asks for."""
    if settings.tiny:
        return [(1, 8, 16), (3, 8, 16)]
    if told := os.environ.get("EAGLE3_GRID"):
        try:
            batches, nodes, prefixes = zip(*(map(int, shape.split(",")) for shape in told.split(";")), strict=True)
        except ValueError:
            raise InputError(f"EAGLE3_GRID is {told!r}: batch,nodes,prefix with semicolons between") from None
        return list(zip(batches, nodes, prefixes, strict=True))
    shapes = [(b, n, s) for s in (512, 2048) for b in (1, 4, 8, 16, 64) for n in (16, 60)]
    shapes += [(b, n, 8192) for b in (1, 8) for n in (16, 60)]
    return [(b, n, 16 * round((s + n + 1) / 16) - n - 1) for b, n, s in shapes]


def run(settings: Settings, sink: Sink, out: Path) -> None:
    device, dtype = settings.torch_device, settings.dtype
    bandwidth, found = floors(settings, out).bandwidth, ways(device)
    refusals = dict.fromkeys(found, 0)
    for batch, nodes, prefix in grid(settings):
        key = f"{batch}-{nodes}-{prefix}"
        if sink.has(f"best-{key}"):
            continue
        case = Case.make(settings, batch, nodes, prefix, dtype, settings.seed)
        one = 2 * case.k_BSKD.nbytes
        sets = [case]
        if not settings.tiny:
            more = min(8, math.ceil(CACHE / one)) - 1
            sets += [Case.make(settings, batch, nodes, prefix, dtype, settings.seed + 1 + n) for n in range(more)]
        want, floor = reference(case), one / bandwidth * 1e6
        best: dict[str, Any] = {}
        for name, way in found.items():
            if refusals[name] >= GIVE_UP:
                continue
            row = sink.get(f"{name}-{key}") or sink.add(
                f"{name}-{key}", **_one(way, sets, want, device, settings), floor_us=round(floor, 2)
            )
            refusals[name] = 0 if row["ok"] else refusals[name] + 1
            if row["ok"] and (not best or row["us"] < best["us"]):
                best = {"way": name, "us": row["us"]}
        share = round(floor / best["us"], 3) if best else None
        sink.add(f"best-{key}", batch=batch, nodes=nodes, prefix=prefix, floor_us=round(floor, 2), share=share, **best)


def _one(way: Way, sets: list[Case], want: Tensor, device: torch.device, settings: Settings) -> dict[str, Any]:
    try:
        runs = [way(case) for case in sets]
        got = runs[0]()
        error = float((got.float() - want).norm() / want.norm())
        # all sets in one graph: launches are not what is asked here
        captured = Captured(lambda: [each() for each in runs], device, settings.graphs)
        timing = measure(captured.replay, device, seconds=0.05, most=30, least=3)
    except Exception as failure:  # a kernel that refuses a shape is a finding; Triton's errors are of no common kind
        why = f"{type(failure).__name__}: {(str(failure).splitlines() or ['no word'])[0]}"
        return {"ok": False, "us": math.inf, "error": None, "why": why[:200]}
    each = {name: round(value / len(runs), 2) for name, value in timing.figures().items()}
    return {"ok": error < TOLERANCE[got.dtype], "error": error, **each}


def summarise(rows: list[dict[str, Any]]) -> list[list[str]]:
    found = {row["key"]: row for row in rows}
    names = sorted({key.rsplit("-", 3)[0] for key in found} - {"best"})
    table = [["batch", "nodes", "prefix", "floor us", *[f"{name} us" for name in names], "best", "floor/best"]]
    for key, row in found.items():
        if key.startswith("best-"):
            times = [found.get(f"{name}-{key.removeprefix('best-')}", {}) for name in names]
            cells = [f"{t['us']:.1f}" if t.get("ok") else "wrong" if t else "-" for t in times]
            share = "-" if row["share"] is None else f"{row['share']:.2f}"
            table.append(
                [
                    *[str(row[n]) for n in ("batch", "nodes", "prefix", "floor_us")],
                    *cells,
                    row.get("way", "none"),
                    share,
                ]
            )
    return table
