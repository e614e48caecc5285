import json
from pathlib import Path

import pytest

from eagle3_serving.demo import demo_prompts
from eagle3_serving.errors import InputError
from eagle3_serving.eval.prompts import by_family, read_prompts


def line(number: int, family: str) -> str:
    return json.dumps({"id": f"{family}-{number}", "family": family, "turns": [f"question {number}"], "source": "x"})


def write(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n")
    return path


def test_limit_counts_within_a_family(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", *(line(i, family) for i in range(3) for family in ("chat", "code")))
    assert [prompt.id for prompt in read_prompts([file], limit=2)] == ["chat-0", "chat-1", "code-0", "code-1"]


def test_a_directory_stands_for_its_files(tmp_path: Path) -> None:
    write(tmp_path / "b.jsonl", line(1, "b"))
    write(tmp_path / "a.jsonl", line(1, "a"), "", line(2, "a"))
    assert list(by_family(read_prompts([tmp_path]))) == ["a", "b"]


@pytest.mark.parametrize(
    ("bad", "what"),
    [
        ("{not json", "not JSON"),
        ("[" * 100_000, "not JSON that can be read"),
        ('["a"]', "not list"),
        ('{"id": 1, "family": "f", "turns": ["x"]}', '"id" must be a string'),
        ('{"id": "1", "turns": ["x"]}', '"family" must be a string'),
        ('{"id": "1", "family": "f", "turns": []}', '"turns" must be a list'),
        ('{"id": "1", "family": "f", "turns": [3]}', '"turns" must be a list'),
    ],
)
def test_a_bad_line_is_named(bad: str, what: str, tmp_path: Path) -> None:
    file = write(tmp_path / "bad.jsonl", line(1, "a"), bad)
    with pytest.raises(InputError, match=r"bad\.jsonl:2: ") as caught:
        read_prompts([file])
    assert what in str(caught.value)


def test_missing_and_empty_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no prompt file"):
        read_prompts([tmp_path / "none.jsonl"])
    with pytest.raises(InputError, match=r"no \*\.jsonl file"):
        read_prompts([tmp_path])
    with pytest.raises(InputError, match="no prompt in"):
        read_prompts([write(tmp_path / "empty.jsonl")])


def test_a_file_that_is_not_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="not UTF-8 text"):
        read_prompts([tmp_path / "a.jsonl"])


def test_the_demo_asks_two_of_each_of_five_kinds() -> None:
    families = by_family(demo_prompts())
    assert {name: len(prompts) for name, prompts in families.items()} == dict.fromkeys(
        ("chat", "code", "math", "instruction", "summary"), 2
    )
