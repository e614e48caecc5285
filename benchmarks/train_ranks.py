"""Training by processes: answer tokens a second with one and with several under torchrun, and with the drafter in shares.

    python -m benchmarks.train_ranks --init checkpoints/smollm2-135m-instruct --answers ANSWERS... --work runs/ranks \\
        --out benchmarks/results/train-ranks.json

Each run sees the same answers, whose features are made before and shared, and the cores are divided among its processes; rounds
alternate. A second of the start, the checks and the saves is not counted: the rate is between the log's first line of a loss and
its last.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.common import cores, write_json
from eagle3_serving.errors import CheckError, Eagle3Error
from eagle3_serving.targets.smollm2 import fetch_target

WAYS: dict[str, tuple[int, list[str]]] = {
    "one process": (1, []),
    "two processes": (2, []),
    "two processes, the drafter in shares": (2, ["--shard-drafter"]),
}


def rate(args: argparse.Namespace, way: str, number: int) -> float:
    """Answer tokens a second of one run."""
    processes, flags = WAYS[way]
    out = args.work / f"{way.replace(' ', '-').replace(',', '')}-{number}"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command += ["-m", "eagle3_serving.cli.main", "train", "--target", str(fetch_target()), "--init", str(args.init)]
    command += ["--answers", *map(str, args.answers), "--out", str(out), "--features", str(args.work / "features")]
    command += ["--tokens", str(args.tokens), "--limit", str(args.limit), "--held-out", "0", "--eval-limit", "0"]
    command += ["--no-replay", "--log-every", "1", "--measure-every", "0", *flags]
    environment = {**os.environ, "OMP_NUM_THREADS": str(max(1, cores() // processes))}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise CheckError(f"{out}: the run ended with {done.returncode}: {done.stderr.strip().splitlines()[-1:]}")
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    first, *_, last = [line for line in lines if "loss" in line]
    return float((last["tokens"] - first["tokens"]) / (last["time"] - first["time"]))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--init", type=Path, required=True)
    parser.add_argument("--answers", type=Path, nargs="+", required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=12_000, help="answer tokens a run (default 12000)")
    parser.add_argument("--limit", type=int, default=80, help="answers (default 80)")
    parser.add_argument("--rounds", type=int, default=3, help="(default 3)")
    args = parser.parse_args(argv)
    try:
        rate(args, "one process", -1)  # makes the features
        rates: dict[str, list[float]] = {way: [] for way in WAYS}
        for number in range(args.rounds):
            for way, found in rates.items():
                found.append(round(rate(args, way, number), 1))
    except Eagle3Error as error:
        print(f"train_ranks: {error}", file=sys.stderr)
        return error.exit_code
    about: dict[str, Any] = {"cores": cores(), "tokens": args.tokens, "rounds": args.rounds}
    write_json(args.out, {"about": about, "tokens_per_second": rates})
    table = Table("", "answer tokens a second", "least", "most")
    for way, found in rates.items():
        table.add_row(way, *(f"{x:.0f}" for x in (statistics.median(found), min(found), max(found))))
    Console().print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
