"""SPEED-Bench's layout, in rows of our own."""

import json
from pathlib import Path

import pytest

from eagle3_serving.errors import InputError
from eagle3_serving.eval.prompts import by_family, read_prompts

ROWS = [
    {"question_id": "a1", "category": "reasoning", "sub_category": "x", "turns": ["Why?", "And then?"], "source": "s"},
    {"question_id": "b1", "category": "coding", "sub_category": None, "turns": ["Write it."], "source": "s"},
    {"question_id": "a2", "category": "reasoning", "sub_category": None, "turns": ["Prove it."], "source": "s"},
]


def jsonl(path: Path, rows: list[dict[str, object]]) -> Path:
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def test_its_categories_are_our_families(tmp_path: Path) -> None:
    prompts = read_prompts([jsonl(tmp_path / "q.jsonl", ROWS)])
    assert {name: [p.id for p in of_one] for name, of_one in by_family(prompts).items()} == {
        "reasoning": ["a1", "a2"],
        "coding": ["b1"],
    }
    assert prompts[0].turns == ("Why?", "And then?")
    assert [p.id for p in read_prompts([tmp_path], limit=1)] == ["a1", "b1"]


def test_a_row_that_was_not_prepared_is_named(tmp_path: Path) -> None:
    text = "FULL BENCHMARK DATA SHOULD BE FETCHED FROM THE SOURCE USING SPECDEC_BENCH"
    file = jsonl(tmp_path / "q.jsonl", [ROWS[0], {**ROWS[1], "turns": [text]}])
    with pytest.raises(InputError, match=r"q.jsonl:2: .*prepare_data.py"):
        read_prompts([file])


def test_a_row_without_turns_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r'q.jsonl:1: "turns"'):
        read_prompts([jsonl(tmp_path / "q.jsonl", [{**ROWS[0], "turns": []}])])


def test_parquet_files_read_the_same(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "test.parquet")
    expected = read_prompts([jsonl(tmp_path / "q.jsonl", ROWS)])
    assert read_prompts([tmp_path / "test.parquet"]) == expected
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(InputError, match="broken.parquet is no table of SPEED-Bench"):
        read_prompts([tmp_path / "broken.parquet"])


def test_parquet_without_its_reader_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    (tmp_path / "test.parquet").write_bytes(b"")
    with pytest.raises(InputError, match=r"eagle3-serving\[speed-bench\]"):
        read_prompts([tmp_path])
