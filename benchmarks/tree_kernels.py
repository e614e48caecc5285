"""Times the kernels that carry a draft tree through one step of vLLM, each replayed as a CUDA graph, on a GPU.

The trees, logits and choices are seeded random numbers. A row says one function's launches and the microseconds of one
call within the graph.

Shape letters: S request slots, K nodes, B requests, R tree rows, T = B * R.
"""

import argparse
import json
import shlex
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.common import write_json
from benchmarks.gpu.timing import Captured, measure

_EXAMPLES = """examples:
  python -m benchmarks.tree_kernels
  python -m benchmarks.tree_kernels --batch 1 64 --nodes 60 --json
  python -m benchmarks.tree_kernels --vocab 128256 --out tree-kernels.json
"""
CALLS = 10  # of one function in a graph: a replay's own cost is shared


class Shape(NamedTuple):
    """One draft and one verify pass. `dtype` of logits and caches."""

    batch: int = 1
    nodes: int = 16
    depth: int = 8
    top_k: int = 10
    vocab: int = 32000
    layers: int = 32
    kv_heads: int = 8
    head_dim: int = 128
    dtype: torch.dtype = torch.bfloat16

    @property
    def rows(self) -> int:
        return self.nodes + 1


class Case(NamedTuple):
    """`call()` makes `launches` launches over buffers made before; under a CUDA graph it may be replayed."""

    name: str
    launches: int
    call: Callable[[], None]


def random_parents(shape: Shape, generator: torch.Generator) -> torch.Tensor:
    """[B, K] int64: full trees, no node deeper than the shape says."""
    parents = []
    for _ in range(shape.batch):
        row: list[int] = []
        deep: list[int] = []
        for node in range(shape.nodes):
            fits = [-1, *(other for other in range(node) if deep[other] < shape.depth)]
            row.append(fits[int(torch.randint(len(fits), (), generator=generator))])
            deep.append(1 if row[-1] < 0 else deep[row[-1]] + 1)
        parents.append(row)
    return torch.tensor(parents)


def cases(device: torch.device | str, shape: Shape = Shape()) -> list[Case]:  # noqa: B008
    """Every function of `eagle3_vllm.kernels` on this shape, with its buffers."""
    return [*verify_cases(device, shape), *draft_cases(device, shape)]


def verify_cases(device: torch.device | str, shape: Shape) -> list[Case]:
    """From the trees drafted to the drafter's next inputs: a uniform batch, and a varlen one of the same rows."""
    from eagle3_vllm.kernels.absorb import AbsorbBuffers, absorb
    from eagle3_vllm.kernels.accept import AcceptBuffers, accept
    from eagle3_vllm.kernels.begin import TreeBuffers, begin
    from eagle3_vllm.kernels.moves import KVTable, move
    from eagle3_vllm.kernels.requests import Requests

    generator = torch.Generator().manual_seed(0)
    batch, rows = shape.batch, shape.rows
    tokens = batch * rows
    parents_SK = random_parents(shape, generator).to(device)
    slots_B = torch.arange(batch, dtype=torch.int32, device=device)
    starts_B1 = torch.arange(batch + 1, dtype=torch.int32, device=device) * rows
    count = torch.tensor([batch], dtype=torch.int32, device=device)
    seq_lens_B = torch.full((batch,), 200 + rows, dtype=torch.int32, device=device)
    prefill_len_S = torch.full((batch,), 100, dtype=torch.int32, device=device)
    ids_T = torch.randint(2, (tokens,), generator=generator).int().to(device)
    chosen_T = torch.randint(2, (tokens,), generator=generator).to(device)
    last_S = torch.zeros(batch, dtype=torch.int64, device=device)
    next_S = torch.zeros(batch, dtype=torch.int32, device=device)
    trees, out = TreeBuffers.make(batch, rows, device), AcceptBuffers.make(batch, rows, shape.depth, device)
    inputs = AbsorbBuffers.make(batch, tokens, device)
    sums = torch.zeros(5, dtype=torch.int64, device=device)
    # a path of the last rows, all of which move, and one that stands in place
    places = 16
    pages = -(-tokens // places)
    cache_shape = (pages, places, shape.kv_heads, 2 * shape.head_dim)
    table = KVTable.of([(0, torch.zeros(cache_shape, dtype=shape.dtype, device=device)) for _ in range(shape.layers)])
    slots_GT = torch.arange(pages * places, device=device)[None]
    far_BD = (rows - shape.depth + torch.arange(shape.depth, device=device)).expand(batch, -1).contiguous()
    near_BD = (1 + torch.arange(shape.depth, device=device)).expand(batch, -1).contiguous()
    made = [
        Case("moves, all rows", 1, lambda: move(table, slots_GT, far_BD, trees.index_BR[:, 0])),
        Case("moves, in place", 1, lambda: move(table, slots_GT, near_BD, trees.index_BR[:, 0])),
    ]
    for name, requests in (
        ("uniform", Requests(batch, batch, slots_B)),
        ("varlen", Requests(batch, count, slots_B, starts_B1, starts_B1)),
    ):

        def run_begin(requests: Requests = requests) -> None:
            begin(parents_SK, requests, seq_lens_B, shape.depth, trees, inputs.positions_T)

        def run_accept(requests: Requests = requests) -> None:
            accept(trees, requests, ids_T, chosen_T, seq_lens_B, prefill_len_S, out, sums)

        def run_absorb(requests: Requests = requests) -> None:
            absorb(
                requests, rows, out.rows_BD, out.num_sampled_B, out.num_rejected_B, ids_T, seq_lens_B, last_S, next_S,
                8192, inputs,
            )  # fmt: skip

        made += [
            Case(f"begin, {name}", 1, run_begin),
            Case(f"accept, {name}", 1, run_accept),
            Case(f"absorb, {name}", 1, run_absorb),
        ]
    return made


def draft_cases(device: torch.device | str, shape: Shape) -> list[Case]:
    """A draft's depths and the choice of its tree, calibrated, mapped to the target's ids."""
    from eagle3_vllm.kernels.calibrate import CalibrationTables
    from eagle3_vllm.kernels.expand import expand
    from eagle3_vllm.kernels.noise import SharedNoise
    from eagle3_vllm.kernels.pool import DraftBuffers, DraftShape
    from eagle3_vllm.kernels.select import select

    from eagle3_serving.tree.calibrate import Calibration

    generator = torch.Generator().manual_seed(0)
    batch, plan = shape.batch, DraftShape(shape.top_k, shape.depth, shape.vocab)
    draft = DraftBuffers.make(batch, plan, device)
    most = max(plan.widths)
    logits_XV = torch.randn(batch * most, shape.vocab, generator=generator).to(device, shape.dtype)
    prefix_B = torch.full((batch,), 200, dtype=torch.int32, device=device)
    target_ids_V = torch.arange(shape.vocab, device=device) * 2
    tables = CalibrationTables.of(Calibration((0.1,), (0.9,), (0.0, -0.3)), device)

    slots_B = torch.arange(batch, device=device)
    sampled = SharedNoise(torch.ones(batch, device=device), slots_B.clone(), wide=False)

    def grow(depth: int, noise: SharedNoise | None = None) -> None:
        logits = logits_XV[: batch * plan.widths[depth - 1]]
        expand(draft, depth, logits, prefix_B, target_ids_V, tables, noise, slots_B)

    for depth in range(1, shape.depth + 1):  # a real pool to choose from
        grow(depth)
    drafting_B = torch.ones(batch, dtype=torch.bool, device=device)
    only_chain_S = torch.zeros(batch, dtype=torch.bool, device=device)
    tokens_BN = torch.zeros(batch, shape.nodes, dtype=torch.int64, device=device)
    parents_SK = torch.zeros(batch, shape.nodes, dtype=torch.int64, device=device)
    sums = torch.zeros(5, dtype=torch.int64, device=device)

    def choose() -> None:
        select(
            draft.candidates, shape.depth, slots_B, drafting_B, tokens_BN, parents_SK, sums, target_ids_V, only_chain_S
        )  # fmt: skip

    depths = sorted({1, min(2, shape.depth), shape.depth})
    return [
        *(Case(f"expand, depth {depth} of {shape.depth}", 2, partial(grow, depth)) for depth in depths),
        *(Case(f"expand, depth {depth}, at a temperature", 2, partial(grow, depth, sampled)) for depth in depths),
        Case(f"select {shape.nodes} of {plan.candidates}", 1, choose),
    ]


def time_cases(shape: Shape) -> list[dict[str, Any]]:
    """One row a function: launches and microseconds of one call. On a GPU."""
    device = torch.device("cuda")
    rows = []
    for case in cases(device, shape):

        def calls(case: Case = case) -> None:
            for _ in range(CALLS):
                case.call()

        graph = Captured(calls, device)
        timing = measure(graph.replay, device)
        figures = {name: round(value / CALLS, 2) for name, value in timing.figures().items()}
        rows.append({"batch": shape.batch, "case": case.name, "launches": case.launches, "why": graph.why, **figures})
    return rows


def read_arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.tree_kernels",
        description=__doc__,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16, 64], help="requests (default 1 16 64)")
    parser.add_argument("--nodes", type=int, default=16, help="draft nodes of a tree (default 16)")
    parser.add_argument("--depth", type=int, default=8, help="depth of a tree (default 8)")
    parser.add_argument("--top-k", type=int, default=10, help="candidates a node of a tree (default 10)")
    parser.add_argument("--vocab", type=int, default=32000, help="tokens the drafter knows (default 32000)")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line, in place of the table")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the JSON object there as well")
    args = parser.parse_args(argv)
    if min(*args.batch, args.nodes, args.depth, args.top_k) < 1 or args.vocab < args.top_k:
        parser.error("--batch, --nodes, --depth and --top-k are at least 1, and --vocab is no less than --top-k")
    if not torch.cuda.is_available():
        parser.error("no CUDA device is there: these kernels are timed on a GPU alone")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    args = read_arguments(argv)
    rows: list[dict[str, Any]] = []
    for batch in args.batch:
        rows += time_cases(Shape(batch, args.nodes, args.depth, args.top_k, args.vocab))
    report = {
        "device": torch.cuda.get_device_name(),
        "command": shlex.join(["python", "-m", "benchmarks.tree_kernels", *argv]),
        "rows": rows,
    }
    if args.out is not None:
        write_json(args.out, report)
    if args.json:
        print(json.dumps(report))
        return 0
    table = Table("batch", "function", "launches", "microseconds", title=report["device"], title_justify="left")
    for row in rows:
        table.add_row(
            str(row["batch"]), row["case"], str(row["launches"]), f"{row['us']} ({row['us_p10']}-{row['us_p90']})"
        )
    Console().print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
