"""A drafter that goes a token a pass beside one that drafts every depth in one pass: what is accepted, and what a step takes.

    eagle3 train --target TARGET --init DRAFTER --preset p-eagle --answers ANSWERS... --calibrate --out runs/parallel
    python -m benchmarks.parallel_heads --drafter DRAFTER --parallel runs/parallel/drafter --prompts EVAL/*.jsonl \\
        --out benchmarks/results/parallel-heads.json

On the embedded engine, one request in flight, greedy: plain decoding, then each drafter as a chain of 5 and as a tree of 60, each
with the calibration beside it; all settings take every family in turn, so that a busy neighbour slows them alike. Every token is
held against plain decoding's. Of each step that verified: seconds of drafting (taking in what was accepted, and growing) and
of all else; medians, since the cores are shared.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.common import accepted_length, add_pair, cores, write_json
from eagle3_serving.engine import DecodeOptions, EmbeddedEngine, Generation, Target
from eagle3_serving.engine.pair import load_for
from eagle3_serving.engine.policy import FixedPolicy
from eagle3_serving.errors import Eagle3Error
from eagle3_serving.eval.prompts import by_family, read_prompts
from eagle3_serving.patches import Patches
from eagle3_serving.targets.chat import chat_ids, load_tokenizer
from eagle3_serving.targets.smollm2 import fetch_target
from eagle3_serving.tree.calibrate import Calibration

Seconds = list[tuple[float, float]]  # of drafting and of the rest, a step


@contextmanager
def observed(steps: Seconds) -> Iterator[None]:
    """What each step of a fixed shape took goes into `steps`."""

    def observe(self: FixedPolicy, absorbed: int, draft_s: float, verify_s: float, *_: Any) -> None:
        if absorbed <= 8:  # a prompt taken in is no step
            steps.append((draft_s, verify_s))

    patches = Patches()
    patches.attribute(FixedPolicy, "observe", observe)
    try:
        yield
    finally:
        patches.undo()


def summary(said: dict[str, list[Generation]], steps: Seconds) -> dict[str, Any]:
    """Of one setting."""
    everything = [one for family in said.values() for one in family]
    families = {name: round(accepted_length(family), 4) for name, family in said.items()}
    passes = sum(one.steps for one in everything)
    deepest = max((len(one.accepted_by_position) for one in everything), default=0)
    counts = [one.accepted_by_position for one in everything]
    made: dict[str, Any] = {
        "accepted_length": round(sum(families.values()) / len(families), 4),
        "families": families,
        "by_position": [round(sum(c[k] for c in counts if len(c) > k) / max(1, passes), 4) for k in range(deepest)],
        "tokens_per_second": round(sum(len(g.token_ids) for g in everything) / sum(g.seconds for g in everything), 2),
    }
    if steps:
        draft, rest = (1000 * statistics.median(part) for part in zip(*steps, strict=True))
        whole = 1000 * statistics.median(a + b for a, b in steps)
        made |= {"draft_ms": round(draft, 2), "verify_ms": round(rest, 2), "step_ms": round(whole, 2)}
        made["tokens_per_second_of_medians"] = round(made["accepted_length"] / whole * 1000, 2)
    return made


def measure(args: argparse.Namespace, directory: Path) -> dict[str, Any]:
    target, tokenizer = Target.load(directory), load_tokenizer(directory)
    engines = {
        name: EmbeddedEngine(target, load_for(target, path), Calibration.beside(path))
        for name, path in (("autoregressive", args.drafter), ("parallel", args.parallel))
    }
    shapes = {
        "chain": DecodeOptions(args.max_tokens, "chain", k=args.k),
        "tree": DecodeOptions(args.max_tokens, "tree", nodes=args.nodes, depth=args.depth, top_k=args.top_k),
    }
    settings = [("plain", engines["autoregressive"], DecodeOptions(args.max_tokens, "plain"))]
    settings += [
        (f"{name} {mode}", engine, shape) for mode, shape in shapes.items() for name, engine in engines.items()
    ]
    said: dict[str, dict[str, list[Generation]]] = {name: {} for name, _, _ in settings}
    steps: dict[str, Seconds] = {name: [] for name, _, _ in settings}
    for family, prompts in by_family(read_prompts(args.prompts, args.limit)).items():
        ids = [chat_ids(tokenizer, prompt.turns[0]) for prompt in prompts]
        for name, engine, options in settings:
            with observed(steps[name]):
                said[name][family] = engine.generate_many(ids, options)
    tokens = {name: [g.token_ids for family in of.values() for g in family] for name, of in said.items()}
    parallel = engines["parallel"].drafter
    assert parallel is not None
    return {
        "about": {
            "cores": cores(),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "prompts_a_family": args.limit,
            "max_tokens": args.max_tokens,
            "shapes": {"chain": args.k, "tree": [args.nodes, args.depth, args.top_k]},
            "parallel_layers": parallel.config.num_layers,
        },
        "identical": all(each == tokens["plain"] for each in tokens.values()),
        "settings": {name: summary(of, steps[name]) for name, of in said.items()},
    }


def show(found: dict[str, Any]) -> None:
    table = Table("setting", "tokens a pass", "draft ms", "verify ms", "step ms", "tokens/s")
    for name, row in found["settings"].items():
        cells = [
            row.get(key, "") for key in ("accepted_length", "draft_ms", "verify_ms", "step_ms", "tokens_per_second")
        ]
        table.add_row(name, *map(str, cells))
    Console().print(table)
    print("every token is plain decoding's" if found["identical"] else "TOKENS DIFFER from plain decoding's")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_pair(parser)
    parser.add_argument("--parallel", type=Path, required=True, help="a drafter of --preset p-eagle")
    parser.add_argument("--out", type=Path, required=True)
    for name, default in (("limit", 4), ("max-tokens", 64), ("k", 5), ("nodes", 60), ("depth", 8), ("top-k", 10)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    try:
        found = measure(args, args.target or fetch_target())
    except Eagle3Error as error:
        print(error, file=sys.stderr)
        return error.exit_code
    show(found)
    write_json(args.out, found)
    print(json.dumps(found["about"]))
    return 0 if found["identical"] else 1


if __name__ == "__main__":
    sys.exit(main())
