"""What the benchmarks of the embedded engine share: their arguments, their figure, and how results are written."""

import argparse
import json
import os
import random
import statistics
import sys
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from eagle3_serving.engine import DecodeOptions, EmbeddedEngine, Generation
from eagle3_serving.errors import Eagle3Error
from eagle3_serving.files import write_whole
from eagle3_serving.train.data import Answer


def add_pair(parser: argparse.ArgumentParser) -> None:
    """Target, drafter and prompts."""
    parser.add_argument("--target", type=Path, help="directory of the target (default: SmolLM2-135M-Instruct)")
    parser.add_argument("--drafter", type=Path, required=True)
    parser.add_argument("--prompts", type=Path, nargs="+", required=True)


def cores() -> int:
    """Those that this process may use, which can be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def accepted_length(said: Sequence[Generation]) -> float:
    """Tokens a target pass, of all answers together; the prefill's own token is not counted."""
    return sum(len(g.token_ids) - 1 for g in said) / max(1, sum(g.passes - 1 for g in said))


def replayed(
    engine: EmbeddedEngine, answers: dict[str, list[Answer]], options: DecodeOptions, batch: int
) -> dict[str, list[Generation]]:
    """Recorded answers again, by family. Each must come out as it was recorded."""
    everything = [answer for family in answers.values() for answer in family]
    said = engine.generate_many([answer.prompt_ids for answer in everything], options, batch)
    for answer, generation in zip(everything, said, strict=True):
        assert generation.token_ids == answer.response_ids, "the replay left the recorded text"
    rest = iter(said)
    return {name: list(islice(rest, len(family))) for name, family in answers.items()}


def by_family_accepted(
    engine: EmbeddedEngine, answers: dict[str, list[Answer]], options: DecodeOptions, batch: int
) -> dict[str, float]:
    """Tokens a target pass, by family."""
    return {name: accepted_length(part) for name, part in replayed(engine, answers, options, batch).items()}


def bootstrap(once: Callable[[random.Random], float], draws: int = 2000) -> float:
    """The standard error of a figure: the deviation over `draws` of `once`, which takes it of a sample drawn with the dice."""
    dice = random.Random(0)
    return statistics.stdev(once(dice) for _ in range(draws))


def run_script(main: Callable[[], int]) -> None:
    """`main` as a script: an error of ours is one line and its exit code."""
    try:
        raise SystemExit(main())
    except Eagle3Error as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None


def write_json(path: Path, value: Any) -> None:
    """Beside, then renamed."""
    write_whole(path, json.dumps(value, indent=1) + "\n")
