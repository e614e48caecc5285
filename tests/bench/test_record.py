"""A sweep's file: nothing measured is lost, and one sweep does not go on in another's file."""

from pathlib import Path

import pytest

from eagle3_serving.bench.record import Record, read_record
from eagle3_serving.errors import InputError

ABOUT = {"engine": "vllm", "tokens": 8}


def test_rows_are_there_for_the_next_run(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "sweep.jsonl"
    Record(path, ABOUT, {"device": "a"}).add({"round": 0, "setting": "plain"})
    again = Record(path, ABOUT, {"device": "b"})
    assert again.has(round=0, setting="plain") and not again.has(round=1, setting="plain")
    assert read_record(path)[0]["machine"] == {"device": "a"}


def test_a_line_cut_by_a_kill_is_dropped_and_measured_again(tmp_path: Path) -> None:
    path = tmp_path / "sweep.jsonl"
    Record(path, ABOUT, {}).add({"round": 0})
    with path.open("a") as file:
        file.write('{"round": 1, "sett')
    record = Record(path, ABOUT, {})
    assert record.rows == [{"round": 0}]
    record.add({"round": 1})
    assert read_record(path)[1] == [{"round": 0}, {"round": 1}]


def test_another_sweep_is_refused_with_what_differs(tmp_path: Path) -> None:
    path = tmp_path / "sweep.jsonl"
    Record(path, ABOUT, {})
    with pytest.raises(InputError, match=r"another tokens \(8, now 9\)"):
        Record(path, {**ABOUT, "tokens": 9}, {})


@pytest.mark.parametrize("text", ["", "[]\n", '{"round": 0}\n', "no json\n", "\n\n"])
def test_a_file_of_something_else_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "notes.jsonl"
    path.write_text(text)
    with pytest.raises(InputError, match="name another --out"):
        read_record(path)
