"""Drawn answers are drawn once, and every drafter is held against the same."""

import json
from pathlib import Path

import pytest

from benchmarks import drawn_answers
from eagle3_serving.errors import InputError

SHIPPED = Path(__file__).resolve().parents[2] / "checkpoints" / "smollm2-135m-instruct"


def arguments(folder: Path, target: Path) -> list[str]:
    prompts = folder / "eval.jsonl"
    rows = [{"id": str(n), "family": f, "turns": [f"Say {n} words."]} for n, f in enumerate(["one", "one", "other"])]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = ["--prompts", str(prompts), "--drafter", str(SHIPPED), "--target", str(target), "--max-tokens", "12"]
    return [*made, "--work", str(folder / "work"), "--out", str(folder / "out.json")]


def test_answers_are_drawn_once_and_played_back(target_dir: Path, tmp_path: Path) -> None:
    argv = arguments(tmp_path, target_dir)
    assert drawn_answers.main(argv) == 0
    made = json.loads((tmp_path / "out.json").read_text())
    rows = [(row["mode"], row["proposals"]) for row in made["rows"]]
    assert rows == [("chain", "coupled"), ("chain", "top"), ("tree", "coupled"), ("tree", "top")]
    assert made["about"]["prompts"] == 3
    for row in made["rows"]:
        assert set(row["families"]) == {"one", "other"} and 1 <= row["mean"] <= 9
        assert row["mean"] == pytest.approx(sum(row["families"].values()) / 2, abs=1e-3)
    kept = sorted((tmp_path / "work").iterdir())
    assert [path.name for path in kept] == ["one-T1-p1-seed0.jsonl", "other-T1-p1-seed0.jsonl"]
    before = [path.stat().st_mtime_ns for path in kept]
    assert drawn_answers.main(argv) == 0
    assert [path.stat().st_mtime_ns for path in kept] == before, "drawn again"
    assert json.loads((tmp_path / "out.json").read_text())["rows"] == made["rows"]


def test_a_temperature_of_zero_is_refused(target_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="give more than 0"):
        drawn_answers.main([*arguments(tmp_path, target_dir), "--temperature", "0"])
