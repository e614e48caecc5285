"""The long soak's own arithmetic: what is asked, what is compared, what counts as lost, and that nothing is done twice."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from benchmarks import soak
from benchmarks.small_pair import LETTERS
from benchmarks.soak_engines import ENGINES, KINDS, MARK, Found, Life, Request
from eagle3_serving.engine import DecodeOptions, EmbeddedEngine
from eagle3_serving.errors import CheckError

WHOLE = {"held": [5, 5], "failed": 0, "wrong_lines": [], "differing": 0, "processes_left": []}


def test_requests_come_in_waves_of_a_few_kinds_and_all_kinds_come() -> None:
    texts = soak.prompts(0, 97)
    asked = soak.requests(2050, 1, texts)
    waves = [{r.kind for r in asked[start : start + soak.WAVE]} for start in range(0, len(asked), soak.WAVE)]
    assert len(asked) == 2050 and max(map(len, waves)) == soak.KINDS_OF_A_WAVE and set().union(*waves) == set(KINDS)
    assert asked == soak.requests(2050, 1, texts) != soak.requests(2050, 2, texts)
    beginnings = [tuple(text[: soak.STEM]) for text in texts[1::2]]
    assert len(set(beginnings)) == soak.STEMS


def test_an_answer_is_compared_where_plain_decoding_knows_it() -> None:
    plain: dict[tuple[int, ...], Sequence[int]] = {(1, 2): (5, 6, 7)}
    said = [
        (Request("greedy", [1, 2], 2), [5, 6]),
        (Request("not drafted", [1, 2], 3), [5, 6, 8]),
        (Request("logprobs", [1, 2], 3), None),  # aborted
        (Request("T = 1", [1, 2], 3), [9, 9, 9]),
    ]
    assert soak.differing(said, plain) == (1, 2)


@pytest.mark.parametrize(
    "change",
    [
        {"held": [5, 4]},
        {"failed": 1},
        {"wrong_lines": ["ERROR"]},
        {"differing": 1},
        {"processes_left": ["rank"]},
        {"error": "it fell"},
    ],
)
def test_what_counts_as_lost(change: dict[str, Any]) -> None:
    assert not soak.lost(WHOLE)
    assert soak.lost({**WHOLE, **change})


def test_a_process_that_stayed_is_told() -> None:
    environment = {**os.environ, MARK: "of this test"}
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], env=environment) as child:
        assert len(soak.stayed("of this test")) == 1 and not soak.stayed("of another")
        child.kill()
    assert not soak.stayed("of this test")


def test_pieces_are_compared_kept_and_not_done_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The embedded engine in the place of a server's, drafting: its answers are plain decoding's. Then an engine that falls."""
    done: list[int] = []

    def embedded(life: Life, asked: Sequence[Request]) -> Found:
        done.append(life.ranks)
        engine = EmbeddedEngine.load(*life.pair)
        answers = engine.generate_many([r.prompt for r in asked], DecodeOptions(soak.LONGEST, "chain", k=2), 16)
        said = [answer.token_ids[: r.tokens] for r, answer in zip(asked, answers, strict=True)]
        letters = {token for answer in answers for token in answer.token_ids}
        # no tie between tokens that are not said, which engines break differently
        assert 2 < len(letters) <= len(LETTERS) + 1
        return Found(said, {"aborted": 0, "failed": 0, "held": [3, 3], "wrong_lines": []})

    def falls(life: Life, asked: Sequence[Request]) -> Found:
        raise CheckError("it fell")

    monkeypatch.setattr(soak, "TEXTS", 6)
    monkeypatch.setitem(ENGINES, "vllm", embedded)
    monkeypatch.setitem(ENGINES, "sglang", falls)
    out = tmp_path / "soak.jsonl"
    asked = ["soak", "--out", str(out), "--requests", "24", "--piece", "12", "--engines"]
    monkeypatch.setattr(sys, "argv", [*asked, "vllm"])
    assert soak.main() == 0 and done == [1, 2]
    assert soak.main() == 0 and done == [1, 2]
    rows = [json.loads(line) for line in out.read_text().splitlines()][1:]
    assert [row["ranks"] for row in rows] == [1, 2]
    assert all(row["compared"] > 0 and sum(row["kinds"].values()) == row["requests"] == 12 for row in rows)
    monkeypatch.setattr(sys, "argv", [*asked, "sglang", "--ranks", "1"])
    assert soak.main() == 1
    assert json.loads(out.read_text().splitlines()[-1])["error"] == "it fell"
    capsys.readouterr()
