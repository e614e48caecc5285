"""Prompt files: JSON lines of `{"id", "family", "turns": [...]}`, or SPEED-Bench's own rows."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eagle3_serving.errors import InputError
from eagle3_serving.eval.speed_bench import as_prompt, is_row, parquet_rows
from eagle3_serving.files import parse_json, read_text


@dataclass(frozen=True)
class Prompt:
    id: str
    family: str
    turns: tuple[str, ...]


def read_prompts(paths: Iterable[Path], limit: int | None = None, family: str | None = None) -> list[Prompt]:
    """Prompts of all files in order; a directory stands for its *.jsonl and *.parquet. `limit` keeps the first N of a family.

    `family` stands in where a line names none.

    Raises InputError naming file:line where a line cannot be read, or where there is no prompt at all.
    """
    files = [file for path in paths for file in _files(path)]
    prompts = [prompt for file in files for prompt in _read_file(file, family)]
    if not prompts:
        raise InputError(f"no prompt in {', '.join(map(str, files)) or 'an empty list of files'}")
    if limit is None:
        return prompts
    return [prompt for family in by_family(prompts).values() for prompt in family[:limit]]


def by_family(prompts: Sequence[Prompt]) -> dict[str, list[Prompt]]:
    """In the order in which the families first appear."""
    families: dict[str, list[Prompt]] = {}
    for prompt in prompts:
        families.setdefault(prompt.family, []).append(prompt)
    return families


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        files = sorted([*path.glob("*.jsonl"), *path.glob("*.parquet")])
        if not files:
            raise InputError(f"no *.jsonl file and no *.parquet in {path}")
        return files
    if not path.is_file():
        raise InputError(f"no prompt file at {path}")
    return [path]


def _read_file(path: Path, family: str | None) -> list[Prompt]:
    if path.suffix == ".parquet":
        return [_prompt(row, f"{path}:{number}", family) for number, row in enumerate(parquet_rows(path), 1)]
    lines = read_text(path).split("\n")
    return [_read_line(line, f"{path}:{number}", family) for number, line in enumerate(lines, 1) if line.strip()]


def _read_line(line: str, where: str, family: str | None) -> Prompt:
    value = parse_json(line, where)
    if not isinstance(value, dict):
        raise InputError(f"{where}: a prompt is an object with id, family and turns, not {type(value).__name__}")
    return _prompt(value, where, family)


def _prompt(value: dict[str, Any], where: str, family: str | None) -> Prompt:
    if is_row(value):
        value = as_prompt(value, where)
    if family is not None:
        value.setdefault("family", family)
    for key in ("id", "family"):
        if not isinstance(value.get(key), str):
            raise InputError(f'{where}: "{key}" must be a string')
    turns = value.get("turns")
    if not isinstance(turns, list) or not turns or not all(isinstance(turn, str) and turn for turn in turns):
        raise InputError(f'{where}: "turns" must be a list of one or more non-empty strings')
    return Prompt(value["id"], value["family"], tuple(turns))
