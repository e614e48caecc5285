"""A drafter that goes a token a pass beside such as draft every depth in one pass: what is accepted, and what a step takes.

    eagle3 train --target TARGET --init DRAFTER --preset p-eagle --answers ANSWERS... --out runs/masks
    eagle3 train --target TARGET --init DRAFTER --preset p-eagle --layers 1 --causal-head --answers ANSWERS... --out runs/causal
    python -m benchmarks.parallel_heads --drafter DRAFTER --parallel runs/masks/drafter runs/causal/drafter \\
        --prompts EVAL/*.jsonl --out benchmarks/results/parallel-heads.json

Each drafter as a chain of 5 and as a tree of 60, with the calibration beside it, greedy, in two parts. What is accepted: the target's
answers are recorded once and replayed, which costs drafting alone. What a step takes: the first `--timed` prompts of each family
on the embedded engine, one request in flight, all settings in turn prompt by prompt, so that a busy neighbour slows them alike;
every token is held against plain decoding's. Of each step that verified: seconds of drafting (taking in what was accepted, and
growing) and of all else; medians, since the cores are shared.
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

from benchmarks.common import accepted_length, add_pair, cores, replayed, write_json
from eagle3_serving.engine import DecodeOptions, EmbeddedEngine, Generation, Target
from eagle3_serving.engine.pair import load_for
from eagle3_serving.engine.policy import FixedPolicy
from eagle3_serving.errors import Eagle3Error, InputError
from eagle3_serving.eval.prompts import by_family, read_prompts
from eagle3_serving.eval.replay import RecordedTarget
from eagle3_serving.patches import Patches
from eagle3_serving.targets.chat import chat_ids, load_tokenizer
from eagle3_serving.targets.smollm2 import fetch_target
from eagle3_serving.train.replies import greedy_answers
from eagle3_serving.tree.calibrate import Calibration

BATCH = 8

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


def lengths(said: dict[str, list[Generation]]) -> dict[str, Any]:
    """What was accepted in one setting, by family and by position."""
    families = {name: round(accepted_length(family), 4) for name, family in said.items()}
    counts = [one.accepted_by_position for family in said.values() for one in family]
    passes = sum(one.steps for family in said.values() for one in family)
    by_position = [
        round(sum(c[k] for c in counts if len(c) > k) / max(1, passes), 4) for k in range(max(map(len, counts)))
    ]
    mean = round(sum(families.values()) / len(families), 4)
    return {"accepted_length": mean, "families": families, "by_position": by_position}


def times(steps: Seconds) -> dict[str, float]:
    """Medians of a setting's steps, in milliseconds."""
    draft, rest = (statistics.median(part) for part in zip(*steps, strict=True))
    whole = statistics.median(sum(step) for step in steps)
    return {
        name: round(1000 * value, 2) for name, value in (("draft_ms", draft), ("verify_ms", rest), ("step_ms", whole))
    }


def measure(args: argparse.Namespace, directory: Path) -> dict[str, Any]:
    target, tokenizer = Target.load(directory), load_tokenizer(directory)
    drafters = {"autoregressive": (load_for(target, args.drafter), Calibration.beside(args.drafter))}
    for path in args.parallel:
        if path.parent.name in drafters:
            raise InputError("--parallel: two runs' folders of one name; their figures bear the folders' names")
        drafters[path.parent.name] = load_for(target, path), Calibration.beside(path)
    shapes = {
        "chain": DecodeOptions(args.max_tokens, "chain", k=args.k),
        "tree": DecodeOptions(args.max_tokens, "tree", nodes=args.nodes, depth=args.depth, top_k=args.top_k),
    }
    settings = {f"{name} {mode}": (name, shape) for mode, shape in shapes.items() for name in drafters}
    families = {
        name: [chat_ids(tokenizer, prompt.turns[0]) for prompt in prompts]
        for name, prompts in by_family(read_prompts(args.prompts, args.limit)).items()
    }
    timed = [ids for prompts in families.values() for ids in prompts[: args.timed]]
    steps: dict[str, Seconds] = {name: [] for name in settings}
    engines = {name: EmbeddedEngine(target, *pair) for name, pair in drafters.items()}
    identical, plain_s = True, []
    for ids in timed:
        plain = EmbeddedEngine(target).generate(ids, DecodeOptions(args.max_tokens, "plain"))
        plain_s.append(plain.seconds / len(plain.token_ids))
        for name, (drafter, shape) in settings.items():
            with observed(steps[name]):
                identical &= engines[drafter].generate(ids, shape).token_ids == plain.token_ids
    recorder = EmbeddedEngine(Target.load(directory))
    answers = {name: greedy_answers(recorder, prompts, args.max_tokens, BATCH) for name, prompts in families.items()}
    everything = [answer for family in answers.values() for answer in family]
    replaying = RecordedTarget(target, drafters["autoregressive"][0].config.aux_layers, everything)
    found: dict[str, dict[str, Any]] = {"plain": {"step_ms": round(1000 * statistics.median(plain_s), 2)}}
    for name, (drafter, shape) in settings.items():
        said = replayed(EmbeddedEngine(replaying, *drafters[drafter]), answers, shape, BATCH)
        found[name] = {**lengths(said), **times(steps[name])}
        found[name]["tokens_per_second"] = round(1000 * found[name]["accepted_length"] / found[name]["step_ms"], 2)
    return {
        "about": {
            "cores": cores(),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "prompts_a_family": args.limit,
            "timed_a_family": args.timed,
            "max_tokens": args.max_tokens,
            "shapes": {"chain": args.k, "tree": [args.nodes, args.depth, args.top_k]},
            "layers": {name: drafter.config.num_layers for name, (drafter, _) in drafters.items()},
            "causal_heads": [name for name, (drafter, _) in drafters.items() if drafter.config.causal_head],
        },
        "identical": identical,
        "settings": found,
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
    parser.add_argument(
        "--parallel",
        type=Path,
        nargs="+",
        required=True,
        help="drafters of --preset p-eagle, named by their runs' folders",
    )
    parser.add_argument("--out", type=Path, required=True)
    for name, default in (
        ("limit", 4),
        ("timed", 1),
        ("max-tokens", 64),
        ("k", 5),
        ("nodes", 60),
        ("depth", 8),
        ("top-k", 10),
    ):
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
