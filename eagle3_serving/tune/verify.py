"""A prediction held against `eagle3 bench`: plain and auto, at the loads and on the prompts that were tuned for."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eagle3_serving.bench.record import read_record
from eagle3_serving.bench.summary import summarise
from eagle3_serving.bench.sweep import run_sweep
from eagle3_serving.tune.advice import Advice
from eagle3_serving.tune.options import TuneOptions


@dataclass(frozen=True)
class Verified:
    """One load: speed over plain decoding, predicted and measured, and the range over the rounds."""

    concurrency: int
    predicted: float
    measured: float
    measured_range: tuple[float, float]

    @property
    def percent(self) -> float:
        """By how much the prediction is above what was measured."""
        return 100 * (self.predicted / self.measured - 1)

    def to_json(self) -> dict[str, Any]:
        return {**self.__dict__, "difference_percent": self.percent}


def verify(options: TuneOptions, prompts: Path, advice: list[Advice]) -> list[Verified]:
    """Runs the sweep; its file stands beside the profile, named after the profile's content, so that it goes on where it
    was stopped. Raises CheckError where a server fails."""
    digest = hashlib.sha256(options.out.read_bytes()).hexdigest()[:8]
    bench = options.bench(prompts, options.out.with_suffix(f".{digest}.jsonl"), ("plain", "auto"))
    run_sweep(bench)
    points = {point.concurrency: point for point in summarise(*read_record(bench.out)) if point.mode == "auto"}
    return [
        Verified(one.concurrency, one.speedup, points[one.concurrency].ratio, points[one.concurrency].ratio_range)
        for one in advice
    ]
