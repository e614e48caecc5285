"""The raw files of benchmarks/results, as they came. Those that a picture or a text is made of are told by `used`."""

import json
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import Any

from eagle3_serving.bench.record import Row, read_record
from eagle3_serving.bench.summary import Point, summarise

ROOT = Path(__file__).resolve().parent.parent.parent
RESULTS = ROOT / "benchmarks" / "results"
used: ContextVar[set[str]] = ContextVar("used")


def path(name: str) -> Path:
    """Of a raw file, which is noted where someone listens."""
    if (listening := used.get(None)) is not None:
        listening.add(name)
    return RESULTS / name


def table(name: str) -> Any:
    """A JSON file: one value."""
    return _json(path(f"{name}.json"))


def lines(name: str) -> list[dict[str, Any]]:
    """A file of JSON lines."""
    return _lines(path(f"{name}.jsonl"))


def bench(engine: str) -> tuple[Row, list[Point]]:
    """Head and points of a file of `eagle3 bench`."""
    return _bench(path(f"sweep-{engine}.jsonl"))


@cache
def _json(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))


@cache
def _lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


@cache
def _bench(file: Path) -> tuple[Row, list[Point]]:
    head, rows = read_record(file)
    return head, summarise(head, rows)
