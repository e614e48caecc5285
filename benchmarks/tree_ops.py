"""Times the draft tree's arithmetic without any model pass, and the public implementation's beside it.

The draft logits are seeded random numbers, peaked like a language model's; the target's choices accept a path of two
tokens. `sum` is the arithmetic of `eagle3_serving.tree` on one tree of every request: expand at every depth, pool,
select, layout, positions, acceptance. Two things beside it are told apart: `rows`, what an engine does between two draft
steps (the draft rows' mask, their hidden states, the vocabulary map), and `argmax`, the target's choice at every row.

Theirs, with `--eagle`: `topK_genrate` (build), then `tree_decoding` and `evaluate_posterior` (accept), imported from
SafeAILab/EAGLE. It holds what `rows` and `argmax` do, so `build`, `accept` and `whole` count both on either side. The
stand-in for its draft model leaves out its forward pass, its attention mask with it; nothing is subtracted. It works on
one request at a time: a batch is a loop over requests. Its `depth` counts from 0 and its `total_tokens` counts the root:
it is told the same tree in its own terms. Its acceptance copies the target's logits for every path, so it grows with
`--target-vocab`; `build` does not, but it makes the paths' indices, which ours makes in `accept`. Rounds alternate, ours,
theirs, ours; before each the draft logits are read once, as a draft step has just written them; a ratio is the median of
the rounds' own.

`same_tree`: both chose the same nodes (as paths of target tokens) for every request. They rank by the same fp32 sums,
so a difference would be a tie at the cut: ours keeps the earlier node, theirs whatever torch.topk returns.

Shape letters: B requests, K frontier nodes, T draft rows so far, R rows of the verify pass, H hidden, V vocabulary.
"""

import argparse
import json
import statistics
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from tqdm import tqdm

from benchmarks.tree_ops_public import PublicCode, PublicRequest, PublicTree, load_public
from eagle3_serving.drafter.vocabulary import DraftVocabulary
from eagle3_serving.tree import (
    Acceptance,
    Candidates,
    DraftTree,
    TreeLayout,
    accept_greedy,
    expand,
    pool,
    positions,
    root_frontier,
    select,
    top_children,
    tree_layout,
    with_root,
)

BESIDE = ("rows", "argmax")
ARITHMETIC = ("expand", "pool", "select", "layout", "positions", "accept")
WARM_UP = 3
HIDDEN = 576
CONTEXT = 128
ROOT_TOKEN = 1

_EXAMPLES = """examples:
  python -m benchmarks.tree_ops
  python -m benchmarks.tree_ops --eagle EAGLE --out benchmarks/results/tree-ops-cpu.json
  python -m benchmarks.tree_ops --batch 1,8,64 --nodes 16 --depth 5 --top-k 4 --device cuda --json

EAGLE is a checkout of github.com/SafeAILab/EAGLE (Apache-2.0).
"""


# ends a part: the time since the last one is booked under a name
Lap = Callable[[str], None]


@dataclass(frozen=True)
class Case:
    """What both sides read: draft logits a depth [B, 1 or K, V], a hidden state [B, K, H], the vocabulary map."""

    nodes: int
    logits: list[Tensor]
    hidden_BKH: Tensor
    vocabulary: DraftVocabulary

    @property
    def device(self) -> torch.device:
        return self.hidden_BKH.device

    @property
    def depth(self) -> int:
        return len(self.logits)

    @classmethod
    def make(cls, args: argparse.Namespace, batch: int) -> "Case":
        generator = torch.Generator().manual_seed(args.seed)
        widths = [1, *[args.top_k] * (args.depth - 1)]
        logits = [peaked_logits(batch, width, args.draft_vocab, generator).to(args.device) for width in widths]
        hidden_BKH = torch.randn(batch, args.top_k, HIDDEN, generator=generator).to(args.device)
        target_ids = torch.randperm(args.target_vocab, generator=generator)[: args.draft_vocab].sort().values
        vocabulary = DraftVocabulary(target_ids, args.target_vocab, args.draft_vocab).to(args.device)
        return cls(args.nodes, logits, hidden_BKH, vocabulary)

    def read(self) -> None:
        for logits_BKV in self.logits:
            logits_BKV.amax()


def peaked_logits(batch: int, width: int, vocab: int, generator: torch.Generator) -> Tensor:
    """One favourite a row stands out by a random margin, or no tree would be deeper than a few tokens."""
    logits_BKV = torch.randn(batch, width, vocab, generator=generator) * 3
    favourite_BK1 = logits_BKV.argmax(-1, keepdim=True)
    margin_BK1 = torch.rand(batch, width, 1, generator=generator) * 5
    return logits_BKV.scatter_add(-1, favourite_BK1, margin_BK1)


class Clock:
    """Seconds by part of the current round. Every lap waits for the device."""

    def __init__(self, device: torch.device) -> None:
        self.wait: Callable[[], object] = torch.cuda.synchronize if device.type == "cuda" else lambda: None
        self.restart()

    def restart(self) -> None:
        self.parts: dict[str, float] = defaultdict(float)
        self.wait()
        self.start = perf_counter()

    def lap(self, name: str) -> None:
        self.wait()
        now = perf_counter()
        self.parts[name] += now - self.start
        self.start = now


def no_lap(name: str) -> None:
    pass


class Result(NamedTuple):
    """Our round: the rows' tokens (root first), their layout, and what was accepted."""

    tokens_BR: Tensor
    layout: TreeLayout
    accepted: Acceptance


class Ours:
    """This project's round over a whole batch."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.batch, self.top_k = case.hidden_BKH.shape[:2]
        self.root_B1 = torch.full((self.batch, 1), ROOT_TOKEN, device=case.device)
        self.place_B = torch.full((self.batch,), CONTEXT, device=case.device)

    @torch.inference_mode()
    def round(self, target_logits_BRV: Tensor, lap: Lap = no_lap, part: Lap = no_lap) -> Result:
        """Booked either in two laps, build and accept, or in the parts of both."""
        tokens_BR, layout = self.build(part)
        lap("build")
        argmax_BR = target_logits_BRV.argmax(-1)
        part("argmax")
        accepted = accept_greedy(tokens_BR, layout, argmax_BR, self.case.depth)
        part("accept")
        lap("accept")
        return Result(tokens_BR, layout, accepted)

    @torch.inference_mode()
    def build(self, part: Lap = no_lap) -> tuple[Tensor, TreeLayout]:
        tree = self._draft(part)
        layout = tree_layout(with_root(tree.parents_BN), self.case.depth)
        part("layout")
        positions(layout, self.place_B)
        part("positions")
        tokens_BR = torch.cat([self.root_B1, self.case.vocabulary.to_target(tree.tokens_BN)], dim=1)
        part("rows")
        return tokens_BR, layout

    def _draft(self, part: Lap) -> DraftTree:
        case, device = self.case, self.case.device
        depths: list[Candidates] = []
        frontier, size = root_frontier(self.batch, device), 0
        hidden_BKH = case.hidden_BKH[:, :1]
        mask_BKT = torch.empty(self.batch, 1, 0, dtype=torch.bool, device=device)
        part("rows")
        for logits_BKV in case.logits:
            candidates, frontier = expand(top_children(logits_BKV, self.top_k), frontier, self.top_k, size)
            depths.append(candidates)
            size += candidates.scores_BC.shape[1]
            part("expand")
            if len(depths) == case.depth:
                break
            # what a real step would be given; its outcome is the next canned logits and the same hidden states
            slots_BK1 = frontier.slots_BK[..., None]
            seen_BKT = mask_BKT.gather(1, slots_BK1.expand(-1, -1, mask_BKT.shape[2]))
            own_BKK = torch.eye(self.top_k, dtype=torch.bool, device=device).expand(self.batch, -1, -1)
            mask_BKT = torch.cat([seen_BKT, own_BKK], dim=2)
            hidden_BKH.gather(1, slots_BK1.expand(-1, -1, HIDDEN))
            hidden_BKH = case.hidden_BKH
            case.vocabulary.to_target(frontier.tokens_BK)
            part("rows")
        candidates = pool(depths)
        part("pool")
        tree = select(candidates, case.nodes)
        part("select")
        return tree


# a request's tree, and its acceptance: best leaf, accepted length, the target's logits after it
PublicResult = tuple[PublicTree, tuple[Tensor, Tensor, Tensor]]


class Theirs:
    """The public implementation's round: a loop over the requests."""

    def __init__(self, code: PublicCode, case: Case) -> None:
        target_ids, vocab = case.vocabulary.target_ids, case.vocabulary.vocab_size
        self.requests = [
            PublicRequest(code, [step[i] for step in case.logits], hidden_KH, target_ids, vocab, case.nodes, CONTEXT)
            for i, hidden_KH in enumerate(case.hidden_BKH)
        ]

    @torch.no_grad()
    def round(self, target_logits_BRV: Tensor, lap: Lap) -> list[PublicResult]:
        trees = [request.build() for request in self.requests]
        lap("build")
        accepted = [
            request.accept(tree, target_logits_BRV[i : i + 1])
            for i, (request, tree) in enumerate(zip(self.requests, trees, strict=True))
        ]
        lap("accept")
        return list(zip(trees, accepted, strict=True))


def target_logits(case: Case, tokens_BR: Tensor, layout: TreeLayout) -> Tensor:
    """[B, R, V]: along the first path of two tokens (one, in a tree of one depth) the target agrees, then nowhere."""
    logits_BRV = torch.full((*tokens_BR.shape, case.vocabulary.vocab_size), -1.0, device=case.device)
    for request, tokens in enumerate(tokens_BR.tolist()):
        depths = layout.depth_BN[request].tolist()
        row = depths.index(min(2, max(depths)))
        nowhere = next(token for token in range(len(tokens) + 1) if token not in tokens)
        logits_BRV[request, :, nowhere] = 0
        while (parent := int(layout.parents_BN[request, row])) >= 0:
            logits_BRV[request, parent, tokens[row]] = 1
            row = parent
    return logits_BRV


def paths(tokens_R: Tensor, ancestors_RR: Tensor) -> set[tuple[int, ...]]:
    """Every node as the tokens from the root down to it; ancestors stand before their descendants."""
    tokens = tokens_R.tolist()
    return {tuple(tokens[j] for j, seen in enumerate(row) if seen) for row in ancestors_RR.bool().tolist()}


def same_result(ours: Result, theirs: list[PublicResult]) -> tuple[bool, bool]:
    """Whether the trees are the same, and whether the accepted tokens with the bonus are."""
    tokens_BR, layout, accepted = ours
    same_tree = same_acceptance = True
    for i, ((tokens_1R, retrieve, mask_11RR, _), (best, length, after_V)) in enumerate(theirs):
        # the root's token is no part of the tree: neither side looks at it
        mine, yours = tokens_BR[i].clone(), tokens_1R[0].clone()
        mine[0] = yours[0] = ROOT_TOKEN
        same_tree &= paths(mine, layout.ancestors_BNN[i]) == paths(yours, mask_11RR[0, 0])
        rows = retrieve[best, 1 : int(length) + 1].tolist()
        my_tokens = mine[accepted.rows_BD[i, : int(accepted.count_B[i])]].tolist()
        same_acceptance &= [*my_tokens, int(accepted.bonus_B[i])] == [*yours[rows].tolist(), int(after_V.argmax())]
    return same_tree, same_acceptance


def spread(seconds: Sequence[float], scale: float = 1e6, digits: int = 1) -> dict[str, float]:
    """Median and 10th to 90th percentile, in microseconds unless told."""
    values = torch.tensor(seconds, dtype=torch.float64)
    figures = {"median": values.quantile(0.5), "p10": values.quantile(0.1), "p90": values.quantile(0.9)}
    return {name: round(value.item() * scale, digits) for name, value in figures.items()}


def measure(args: argparse.Namespace, batch: int, code: PublicCode | None) -> dict[str, Any]:
    case = Case.make(args, batch)
    ours, theirs = Ours(case), Theirs(code, case) if code else None
    tokens_BR, layout = ours.build()
    logits_BRV = target_logits(case, tokens_BR, layout)
    result = ours.round(logits_BRV)
    public = theirs.round(logits_BRV, no_lap) if theirs else []

    clock = Clock(case.device)
    booked: dict[str, dict[str, list[float]]] = {side: defaultdict(list) for side in ("parts", "ours", "theirs")}

    def book(side: str, turn: int, run: Callable[[], object]) -> None:
        case.read()
        clock.restart()
        run()
        if turn >= WARM_UP:
            for name, seconds in clock.parts.items():
                booked[side][name].append(seconds)

    for turn in tqdm(range(WARM_UP + args.repeats), desc=f"batch {batch}, parts", disable=None, leave=False):
        book("parts", turn, lambda: ours.round(logits_BRV, part=clock.lap))
    for turn in tqdm(range(WARM_UP + args.repeats), desc=f"batch {batch}, whole", disable=None, leave=False):
        book("ours", turn, lambda: ours.round(logits_BRV, lap=clock.lap))
        if theirs:
            book("theirs", turn, lambda: theirs.round(logits_BRV, clock.lap))

    for side in ("ours", "theirs"):
        laps = booked[side]
        laps["whole"] = [sum(pair) for pair in zip(laps["build"], laps["accept"], strict=True)]
    parts = booked["parts"]
    arithmetic = [sum(round_) for round_ in zip(*(parts[name] for name in ARITHMETIC), strict=True)]
    row: dict[str, Any] = {
        "batch": batch,
        "deepest_node": int(layout.depth_BN.max()),
        "accepted": statistics.mean(result.accepted.count_B.tolist()),
        "unit": "microseconds",
        "sum": spread(arithmetic),
        "parts": {name: spread(parts[name]) for name in (*ARITHMETIC, *BESIDE)},
        "ours": {name: spread(laps) for name, laps in booked["ours"].items()},
        "theirs": None,
        "ratio": None,
        "same_tree": None,
        "same_acceptance": None,
    }
    if theirs:
        row["theirs"] = {name: spread(laps) for name, laps in booked["theirs"].items()}
        row["ratio"] = {
            name: spread([b / a for a, b in zip(booked["ours"][name], laps, strict=True)], scale=1, digits=2)
            for name, laps in booked["theirs"].items()
        }
        row["same_tree"], row["same_acceptance"] = same_result(result, public)
    return row


def print_rows(report: dict[str, Any], console: Console) -> None:
    def show(figures: dict[str, float] | None, digits: int = 0) -> str:
        if not figures:
            return ""
        median, low, high = (f"{figures[name]:,.{digits}f}" for name in ("median", "p10", "p90"))
        return f"{median} ({low}-{high})"

    for row in report["rows"]:
        title = f"batch {row['batch']}: microseconds, median (p10-p90)"
        table = Table("", "ours", "theirs", "theirs / ours", title=title, title_justify="left")
        for name, figures in row["parts"].items():
            table.add_row(name, show(figures))
        table.add_row("sum, without the last two", show(row["sum"]), end_section=True)
        for name in ("build", "accept", "whole"):
            theirs, ratio = (row[column] and row[column][name] for column in ("theirs", "ratio"))
            table.add_row(name, show(row["ours"][name]), show(theirs), show(ratio, digits=2))
        console.print(table)
        if row["theirs"]:
            console.print(f"same_tree: {json.dumps(row['same_tree'])}, theirs is a loop over {row['batch']} request(s)")


def recorded_command(argv: Sequence[str]) -> str:
    """The command line without the machine's own folders."""
    words = list(argv)
    for i, word in enumerate(words):
        option, _, value = word.partition("=")
        if option not in ("--eagle", "--out"):
            continue
        place = i if value else i + 1
        path = Path(value or words[place])
        shown = "EAGLE" if option == "--eagle" else path.name if path.is_absolute() else str(path)
        words[place] = f"{option}={shown}" if value else shown
    return " ".join(["python -m benchmarks.tree_ops", *words])


def read_arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.tree_ops",
        description=__doc__,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--eagle", type=Path, metavar="DIR", help="checkout of SafeAILab/EAGLE to time beside ours")
    parser.add_argument("--batch", default="1,16", help="requests, one or more numbers (default 1,16)")
    parser.add_argument("--nodes", type=int, default=60, help="draft nodes of a tree (default 60)")
    parser.add_argument("--depth", type=int, default=8, help="depth of a tree (default 8)")
    parser.add_argument("--top-k", type=int, default=10, help="candidates a node of a tree (default 10)")
    parser.add_argument("--draft-vocab", type=int, default=6144, help="tokens the drafter knows (default 6144)")
    parser.add_argument("--target-vocab", type=int, default=49152, help="tokens the target knows (default 49152)")
    parser.add_argument("--repeats", type=int, default=50, help="timed rounds (default 50)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line, in place of the tables")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the JSON object there as well")
    args = parser.parse_args(argv)
    try:
        args.batch = [int(number) for number in args.batch.split(",")]
    except ValueError:
        parser.error("--batch takes numbers with commas between them, as in 1,16")
    if min(*args.batch, args.nodes, args.depth, args.top_k, args.repeats) < 1:
        parser.error("--batch, --nodes, --depth, --top-k and --repeats are at least 1")
    if not args.top_k <= args.draft_vocab < args.target_vocab:
        parser.error("--top-k may not pass --draft-vocab, which must be below --target-vocab")
    size = args.top_k + (args.depth - 1) * args.top_k**2
    if args.nodes > size:
        parser.error(f"--nodes {args.nodes} passes the {size} candidates of this --depth and --top-k")
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda, but this torch sees no CUDA device")
    try:
        args.code = load_public(args.eagle) if args.eagle else None
    except (FileNotFoundError, ImportError) as error:
        parser.error(f"--eagle: {error}")
    return args


def main() -> int:
    args = read_arguments(sys.argv[1:])
    names = ("nodes", "depth", "top_k", "draft_vocab", "target_vocab", "repeats", "seed", "device")
    report = {
        "command": recorded_command(sys.argv[1:]),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "device_name": torch.cuda.get_device_name() if args.device == "cuda" else "cpu",
        **{name: getattr(args, name) for name in names},
        "public_code": args.code and {"repository": "SafeAILab/EAGLE", "sha256": args.code.versions},
        "rows": [measure(args, batch, args.code) for batch in args.batch],
    }
    if args.out:
        args.out.write_text(json.dumps(report, indent=1) + "\n")
    if args.json:
        print(json.dumps(report), flush=True)
    else:
        print_rows(report, Console())
    return 0


if __name__ == "__main__":
    sys.exit(main())
