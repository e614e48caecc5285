"""The whole sweep in one command: embedded engine, vLLM and SGLang, each tuned and then measured by load.

    python -m benchmarks.sweep_all --drafter checkpoints/smollm2-135m-instruct --prompts EVAL

For each engine `eagle3 tune` writes the profile that auto decides by, then `eagle3 bench` measures plain, the engine's own
EAGLE-3 and ours, at 1, 2, 4, 8 and 16 requests in flight. The same command goes on where it was stopped; what is there is
not measured again. At the end a line a load says what was predicted, what was measured, and whether auto was never below
plain and never far below the best.

On two quiet cores the defaults take about 30 minutes, half of them SGLang's, whose kernels are slow stand-ins on a CPU (an
estimate from the rates of single runs; `--dry-run` says what is left of the work).
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks.common import write_json
from eagle3_serving.bench.record import read_record
from eagle3_serving.bench.setting import DEFAULTS
from eagle3_serving.bench.summary import Point, summarise
from eagle3_serving.cli.arguments import add_dtype
from eagle3_serving.errors import CheckError, Eagle3Error
from eagle3_serving.eval.options import ENGINES
from eagle3_serving.serve.group import own_group
from eagle3_serving.serve.server import last_lines
from eagle3_serving.targets.smollm2 import fetch_target

# of plain decoding's speed, and of the best setting's, that auto must have
LEAST_OF_PLAIN, LEAST_OF_BEST = 0.97, 0.95
TUNE_CELLS = 12  # how many cells of a sweep a tuning takes as long as, about


class Job:
    """One engine: its files, and how much of it is done. `cells` are those of its sweep, tuning counted as some more."""

    def __init__(self, engine: str, args: argparse.Namespace, target: Path) -> None:
        self.engine = engine
        self.out = args.out / f"sweep-{engine}.jsonl"
        self.profile = args.out / f"sweep-{engine}.profile.json"
        self.tuned = args.out / f"sweep-{engine}.tuned.json"
        self.log = args.out / f"sweep-{engine}.log"
        self.measured = args.repeats * len(args.concurrency.split(",")) * len(DEFAULTS[engine])
        self.cells = TUNE_CELLS + self.measured
        shared = ["--engine", engine, "--target", str(target), "--drafter", str(args.drafter)]
        shared += ["--concurrency", args.concurrency, "--tokens", str(args.tokens), "--dtype", args.dtype, "--json"]
        prompts = list(map(str, args.prompts))
        self.tune = ["tune", *shared, "--out", str(self.profile), "--traffic", *prompts]
        self.tune += ["--limit", str(max(8, args.least)), "--repeats", "1"]
        self.bench = ["bench", *shared, "--out", str(self.out), "--profile", str(self.profile), "--prompts", *prompts]
        self.bench += ["--repeats", str(args.repeats), "--least", str(args.least)]

    @property
    def done(self) -> int:
        measured = len(read_record(self.out)[1]) if self.out.exists() else 0
        return TUNE_CELLS * self.tuned.exists() + measured


EAGLE3 = (sys.executable, "-m", "eagle3_serving.cli.main")


def run_child(
    job: Job, arguments: Sequence[str], bar: "tqdm[Any]", jobs: Sequence[Job], program: Sequence[str] = EAGLE3
) -> dict[str, Any]:
    """An `eagle3` command, whose last line is JSON; the bar follows the jobs' files. Raises CheckError where it fails."""
    argv = [*program, *arguments]
    with job.log.open("ab") as log, own_group(argv, 30.0, stdout=subprocess.PIPE, stderr=log) as process:
        while True:
            try:
                said, _ = process.communicate(timeout=1.0)
                break
            except subprocess.TimeoutExpired:
                bar.n = sum(each.done for each in jobs)
                bar.refresh()
    if process.returncode not in (0, 1) or not said.strip():
        why = " | ".join(last_lines(job.log, 1))
        raise CheckError(f"{job.engine}: eagle3 {arguments[0]} ended with {process.returncode}: {why} (log: {job.log})")
    return dict(json.loads(said.decode().strip().splitlines()[-1]))


def verdict(job: Job) -> list[dict[str, Any]]:
    """A row a load: auto's speed over plain, over the best setting's, and what tuning had predicted."""
    points = summarise(*read_record(job.out))
    predicted = {row["concurrency"]: row["speedup"] for row in json.loads(job.tuned.read_text())["loads"]}
    rows = []
    for auto in (point for point in points if point.mode == "auto"):
        others = [point for point in points if point.concurrency == auto.concurrency]
        best = max(others, key=lambda point: point.ratio)
        rows.append(_row(auto, best, predicted.get(auto.concurrency)))
    return rows


def _row(auto: Point, best: Point, predicted: float | None) -> dict[str, Any]:
    return {
        "engine": auto.engine,
        "concurrency": auto.concurrency,
        "auto": auto.ratio,
        "range": auto.ratio_range,
        "best": best.mode,
        "of_best": auto.ratio / best.ratio,
        "predicted": predicted,
        "prediction_off_percent": 100 * (predicted / auto.ratio - 1) if predicted else None,
        "holds": auto.ratio >= LEAST_OF_PLAIN and auto.ratio >= LEAST_OF_BEST * best.ratio,
        "identical": auto.identical,
    }


def sweep(args: argparse.Namespace) -> int:
    args.out.mkdir(parents=True, exist_ok=True)
    target = args.target or fetch_target()
    jobs = [Job(engine, args, target) for engine in args.engines.split(",")]
    begun = time.monotonic()
    for job in jobs:
        print(f"{job.engine}: {job.done} of {job.cells} done", file=sys.stderr)
    if args.dry_run:
        return 0
    rows: list[dict[str, Any]] = []
    with tqdm(total=sum(job.cells for job in jobs), initial=sum(job.done for job in jobs), unit="cell") as bar:
        for job in jobs:
            bar.set_description(job.engine)
            if not job.tuned.exists():
                write_json(job.tuned, run_child(job, job.tune, bar, jobs))
            run_child(job, job.bench, bar, jobs)
            rows += verdict(job)
            write_json(args.out / "sweep-all.json", {"tokens": args.tokens, "repeats": args.repeats, "rows": rows})
    for row in rows:
        off = "" if row["predicted"] is None else f", predicted {row['predicted']:.2f}x"
        print(
            f"{row['engine']:8} {row['concurrency']:2} in flight: auto {row['auto']:.2f}x{off}, {row['of_best']:.2f} of the best "
            f"({row['best']}){'' if row['holds'] else '  BELOW'}"
        )
    print(f"{(time.monotonic() - begun) / 60:.0f} minutes; plots and reports in {args.out}", file=sys.stderr)
    return 0 if all(row["holds"] and row["identical"] is not False for row in rows) else 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", type=Path, help="directory of the target (default: SmolLM2-135M-Instruct)")
    parser.add_argument("--drafter", type=Path, required=True)
    parser.add_argument("--prompts", type=Path, nargs="+", required=True)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="(default benchmarks/results)")
    parser.add_argument("--engines", default=",".join(ENGINES), help=f"(default {','.join(ENGINES)})")
    parser.add_argument("--concurrency", default="1,2,4,8,16", help="requests in flight (default 1,2,4,8,16)")
    parser.add_argument("--tokens", type=int, default=32, help="tokens an answer (default 32)")
    parser.add_argument("--least", type=int, default=5, help="requests a cell at low concurrency (default 5)")
    parser.add_argument("--repeats", type=int, default=2, help="rounds (default 2)")
    add_dtype(parser, "fp32")
    parser.add_argument("--dry-run", action="store_true", help="say how much is done, and stop")
    try:
        return sweep(parser.parse_args())
    except Eagle3Error as error:
        print(f"sweep_all: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("sweep_all: interrupted; the same command goes on", file=sys.stderr)
        return 130


if __name__ == "__main__":
    raise SystemExit(main())
