"""A question behind little and behind much text: what is asked, and what is counted."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from benchmarks import context_pairs
from benchmarks.context_pairs import Asked, measure, summary
from eagle3_serving.engine import DecodeOptions, EmbeddedEngine, Target
from eagle3_serving.engine.pair import load_for
from eagle3_serving.errors import InputError
from eagle3_serving.targets.chat import load_tokenizer
from eagle3_serving.train.data import Answer

SHIPPED = Path(__file__).resolve().parents[2] / "checkpoints" / "smollm2-135m-instruct"


def arguments(folder: Path, filler: Sequence[str]) -> list[str]:
    prompts = folder / "eval.jsonl"
    rows = [{"id": str(n), "family": "gsm8k", "turns": [f"What is {n} plus {n + 1}?"]} for n in range(2)]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    texts = folder / "texts.jsonl"
    texts.write_text(json.dumps({"id": "t", "turns": ["A train leaves at noon and comes at four. " * 8]}) + "\n")
    made = ["--prompts", str(prompts), "--drafter", str(SHIPPED), "--work", str(folder / "work")]
    made += ["--filler", *(name.format(texts=texts) for name in filler), "--short", "70", "--long", "160"]
    return [*made, "--max-tokens", "8", "--out", str(folder / "out.json")]


def test_the_same_question_stands_behind_more_of_the_same_text(target_dir: Path, tmp_path: Path) -> None:
    argv = [*arguments(tmp_path, ["gsm8k={texts}"]), "--target", str(target_dir)]
    assert context_pairs.main(argv) == 0
    made = json.loads((tmp_path / "out.json").read_text())
    tokenizer = load_tokenizer(target_dir)
    asked = [json.loads(line) for line in (tmp_path / "work" / "pairs.jsonl").read_text().splitlines()]
    short, long = (tokenizer.decode(row["prompt_ids"]) for row in asked[:2])
    assert "What is 0 plus 1?" in short and "What is 0 plus 1?" in long
    assert abs(len(asked[0]["prompt_ids"]) - 70) < 12 and abs(len(asked[1]["prompt_ids"]) - 160) < 12
    both = [row for row in made["summary"] if row["family"] == "all"]
    assert both[0]["questions"] == 2 and both[0]["short"] >= 1 and 0 < both[0]["top_long"] < 1


def test_a_family_without_a_filler_is_named(target_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no texts for the family gsm8k"):
        context_pairs.main([*arguments(tmp_path, ["code={texts}"]), "--target", str(target_dir)])
    with pytest.raises(InputError, match="FAMILY=FILE"):
        context_pairs.main([*arguments(tmp_path, ["{texts}"]), "--target", str(target_dir)])


def test_hits_are_the_drafters_own(target_dir: Path, tmp_path: Path) -> None:
    """An answer of two tokens has one chain, of one draft: it is right where the engine's own step accepts it."""
    argv = [*arguments(tmp_path, ["gsm8k={texts}"]), "--target", str(target_dir)]
    assert context_pairs.main(argv) == 0
    rows = [json.loads(line) for line in (tmp_path / "work" / "pairs.jsonl").read_text().splitlines()]
    target = Target.load(target_dir)
    drafter = load_for(target, SHIPPED)
    asked = [
        Asked("f", n, "short", Answer("0", tuple(r["prompt_ids"]), tuple(r["response_ids"][:2])))
        for n, r in enumerate(rows)
    ]
    found = measure(target, [("shipped", drafter)], asked)
    assert [row["chains"] for row in found] == [1] * len(rows)
    engine = EmbeddedEngine(Target.load(target_dir), drafter)
    said = engine.generate_many([row["prompt_ids"] for row in rows], DecodeOptions(3, "chain", k=1), 4)
    # two passes, the prompt's among them, give three tokens where the draft was accepted
    assert [row["accepted"]["shipped"] for row in found] == [float(one.passes == 2) for one in said]


def test_a_ratio_is_of_the_questions_that_have_both(tmp_path: Path) -> None:
    def row(number: int, length: str, hits: float) -> dict[str, Any]:
        return {
            "family": "f",
            "number": number,
            "length": length,
            "top": 0.5,
            "accepted": {"d": hits},
            "chains": 10,
        }

    rows = [row(0, "short", 10), row(0, "long", 5), row(1, "short", 30), row(1, "long", 25), row(2, "short", 90)]
    found = {one["family"]: one for one in summary(rows, ["d"])}
    assert found["f"]["questions"] == 2 and found["f"]["short"] == 3.0 and found["f"]["long"] == 2.5
    assert found["all"]["ratio"] == pytest.approx(2.5 / 3, abs=1e-4) and found["all"]["error"] > 0
    assert summary(rows[-1:], ["d"]) == []
