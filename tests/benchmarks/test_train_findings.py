"""The findings' script on a toy: every kind of variant trains and is measured, and what was done is not done again."""

import argparse
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks import train_findings as findings
from benchmarks.common import write_json
from benchmarks.train_findings import VARIANTS, Place, main, options_of, plan, run_one
from benchmarks.train_findings_report import plot, summary
from eagle3_serving.errors import CheckError, InputError

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "engine"))
from tiny import VOCAB

MakeWork = Callable[[Path, int, int], argparse.Namespace]


@pytest.fixture(scope="module")
def args(directory: Path, make_work: MakeWork, tmp_path_factory: pytest.TempPathFactory) -> argparse.Namespace:
    """A prepared `--work`: held-out answers are there, so that no tokenizer is asked."""
    made = make_work(tmp_path_factory.mktemp("findings"), 60, 600)
    made.seeds, made.only, made.out = 2, ["ablation"], made.work / "table.json"
    made.tokens_per_batch, made.device = 1024, "cpu"
    findings.prepare(made, directory, Place(made.work))
    return made


@pytest.mark.parametrize(
    "name", ["paper", "eagle-2", "constraint", "data-1/8", "acceptance", "eagle-3.1", "calibrated"]
)
def test_a_variant_is_trained_and_measured(args: argparse.Namespace, directory: Path, name: str) -> None:
    before = set((args.work / "features").iterdir())
    record = run_one(args, directory, name, 0)
    assert set((args.work / "features").iterdir()) == before, "the target was asked again"
    assert record["tokens"] >= 600 * VARIANTS[name].share
    assert record["tokens"] < 600 * VARIANTS[name].share + 400
    for figure in ("chain", "tree", "small_tree"):
        assert 1.0 <= record[figure] <= 9.0 and set(record["families"][figure]) == {"one", "other"}
    assert record["tree"] >= record["small_tree"]
    options = json.loads((Place(args.work).run(name, 0) / "log.jsonl").read_text().splitlines()[0])["options"]
    assert options["feature_weight"] == (1.0 if name in ("eagle-2", "constraint") else 0.0)


def test_runs_that_are_done_are_gathered_not_done_again(
    args: argparse.Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(findings, "prepare", lambda *_: None)
    records = [fake(name, seed) for name, seed in plan(args)]
    for record in records:
        folder = Place(args.work).run(record["name"], record["seed"])
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "result.json", record)
    command = ["--target", ".", "--answers", ".", "--prompts", ".", "--work", str(args.work), "--out", str(args.out)]
    command += [
        "--only",
        "ablation",
        "--seeds",
        "2",
        "--limit",
        "5",
        "--max-tokens",
        "24",
        "--draft-vocab-size",
        str(VOCAB),
    ]
    assert main([*command, "--tokens", "600"]) == 0
    table = json.loads(args.out.read_text())
    assert len(table["runs"]) == len(records) == 16
    assert args.out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    shutil.rmtree(args.work / "runs")  # the table alone is left, as on another machine
    assert main([*command, "--tokens", "600"]) == 0
    assert json.loads(args.out.read_text())["runs"] == table["runs"]
    assert main([*command, "--tokens", "600", "--only", "top"]) == 0  # the others' rows stay
    assert json.loads(args.out.read_text())["runs"] == table["runs"]
    with pytest.raises(InputError, match="tokens 600, not 700"):
        main([*command, "--tokens", "700"])


def test_a_run_that_fails_names_its_log(directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    false = shutil.which("false")
    assert false is not None
    monkeypatch.setattr(sys, "executable", false)
    args = argparse.Namespace(work=tmp_path, only=["scaling"], seeds=1, workers=2, out=tmp_path / "table.json")
    args.tokens, args.max_tokens, args.draft_vocab_size = 600, 24, VOCAB
    args.tokens_per_batch, args.device = 1024, "cpu"
    with pytest.raises(CheckError, match=r"of seed 0 ended with 1: .*run.log says why"):
        findings.run_all(args, directory)
    assert not args.out.exists()


def fake(name: str, seed: int) -> dict[str, Any]:
    figures = {"chain": 1.5 + seed / 10, "tree": 2.0 + seed / 10 + (name == "paper"), "small_tree": 1.8}
    return {"name": name, "group": VARIANTS[name].group, "seed": seed, "tokens": 100, "share": 1.0, **figures}


def test_the_summary_pairs_seeds(tmp_path: Path) -> None:
    records = [fake(name, seed) for name in ("paper", "top", "data-1/2") for seed in (0, 1)]
    rows = {row["name"]: row for row in summary(records, "paper")}
    assert rows["top"]["chain"] == {"mean": 1.55, "deviation": pytest.approx(0.0707)}
    assert rows["top"]["tree_against_paper"] == {"mean": -1.0, "deviation": 0.0}
    assert rows["paper"]["tree_against_paper"] is None
    assert plot(records[:1], "paper", tmp_path / "one.png").exists()


def test_a_whole_seed_comes_before_the_next() -> None:
    args = argparse.Namespace(only=["ablation", "scaling"], seeds=2)
    runs = plan(args)
    assert len(runs) == 22 and [seed for _, seed in runs] == [0] * 11 + [1] * 11
    assert [VARIANTS[name].reads(30) for name in ("paper", "top", "low-middle-top")] == [
        (2, 15, 27),
        (30,),
        (2, 15, 30),
    ]
    assert options_of(VARIANTS["eagle-2"], 1, 800, 1024).ttt_steps == 1
    assert options_of(VARIANTS["data-1/8"], 1, 800, 1024).tokens == 100
