"""The sweep's own account: what is done, what holds, and a child that fails."""

import argparse
import io
import json
import sys
from pathlib import Path

import pytest
from tqdm import tqdm

from benchmarks.sweep_all import TUNE_CELLS, Job, run_child, verdict
from eagle3_serving.errors import CheckError

HEAD = {"about": {"engine": "vllm", "dtype": "fp32"}, "machine": {}}


def row(setting: str, rate: float, turn: int, identical: int = 5) -> dict[str, object]:
    return {
        "round": turn,
        "concurrency": 4,
        "temperature": 0.0,
        "setting": setting,
        "requests": 5,
        "tokens_per_second": rate,
        "tokens_per_second_per_user": rate / 4,
        "first_token_s": {"p50": 0.1, "p90": 0.1, "p99": 0.1},
        "token_s": {"p50": 0.1, "p90": 0.1, "p99": 0.1},
        "accepted_length": 2.0,
        "nodes_per_step": 3.0,
        "identical": identical,
        "gpu_memory_gib": None,
    }


def job(folder: Path) -> Job:
    args = argparse.Namespace(
        out=folder,
        drafter=folder,
        prompts=[folder],
        concurrency="1,4",
        tokens=8,
        least=5,
        repeats=2,
        dtype="fp32",
    )
    return Job("vllm", args, folder)


def test_what_is_there_counts_as_done(tmp_path: Path) -> None:
    one = job(tmp_path)
    assert (one.done, one.cells) == (0, TUNE_CELLS + 2 * 2 * 3)
    one.out.write_text("\n".join(map(json.dumps, [HEAD, row("plain", 10, 0), row("auto", 12, 0)])) + "\n")
    assert one.done == 2
    one.tuned.write_text("{}")
    assert one.done == 2 + TUNE_CELLS


@pytest.mark.parametrize(
    "auto, chain, holds",
    [(12.0, 12.5, True), (12.0, 14.0, False), (9.8, 9.0, True), (9.6, 9.0, False)],
    ids=["near the best", "far from the best", "near plain", "below plain"],
)
def test_auto_is_held_against_plain_and_the_best(tmp_path: Path, auto: float, chain: float, holds: bool) -> None:
    one = job(tmp_path)
    rows = [row(*said, turn) for turn in range(2) for said in (("plain", 10.0), ("own-chain-3", chain), ("auto", auto))]
    one.out.write_text("\n".join(map(json.dumps, [HEAD, *rows])) + "\n")
    one.tuned.write_text(json.dumps({"loads": [{"concurrency": 4, "speedup": auto / 10 * 1.1}]}))
    (said,) = verdict(one)
    assert said["holds"] is holds and said["identical"] is True
    assert said["prediction_off_percent"] == pytest.approx(10)


def test_a_child_that_fails_is_one_line_with_its_last_words(tmp_path: Path) -> None:
    one, bar = job(tmp_path), tqdm(total=2, file=io.StringIO())
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckError, match="vllm: eagle3 bench ended with 2: .*there is no file none.jsonl") as caught:
        run_child(one, [*one.bench[:-6], "--prompts", "none.jsonl"], bar, [one])
    assert "\n" not in str(caught.value)


def test_the_bar_counts_what_every_job_has_done(tmp_path: Path) -> None:
    folders = [tmp_path / "first", tmp_path / "second"]
    for folder in folders:
        folder.mkdir()
    jobs, bar = [job(folder) for folder in folders], tqdm(total=100, initial=7, file=io.StringIO())
    jobs[1].tuned.write_text("{}")  # done before, though its turn comes later
    slow = "import time; time.sleep(2.5); print('{}')"
    run_child(jobs[0], [], bar, jobs, [sys.executable, "-c", slow])
    assert bar.n == TUNE_CELLS
