"""What the benchmarks of the embedded engine share: their arguments, their figure, and how results are written."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eagle3_serving.engine import Generation


def add_pair(parser: argparse.ArgumentParser) -> None:
    """Target, drafter and prompts."""
    parser.add_argument("--target", type=Path, help="directory of the target (default: SmolLM2-135M-Instruct)")
    parser.add_argument("--drafter", type=Path, required=True)
    parser.add_argument("--prompts", type=Path, nargs="+", required=True)


def accepted_length(said: Sequence[Generation]) -> float:
    """Tokens a target pass, of all answers together; the prefill's own token is not counted."""
    return sum(len(g.token_ids) - 1 for g in said) / max(1, sum(g.passes - 1 for g in said))


def write_json(path: Path, value: Any) -> None:
    """Beside, then renamed."""
    beside = path.with_name(f".{path.name}.partial")
    beside.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    beside.replace(path)
