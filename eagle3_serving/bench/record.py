"""The sweep's file: a line that says what was asked, then a JSON line for every cell as it is measured."""

import json
from pathlib import Path
from typing import Any

from eagle3_serving.errors import InputError
from eagle3_serving.files import parse_json

Row = dict[str, Any]


class Record:
    """`rows` so far; `add` appends one and has it on disk before it returns, so that a stopped sweep loses nothing."""

    def __init__(self, path: Path, about: Row, machine: Row) -> None:
        """Raises InputError where the file holds a sweep of something else."""
        self.path = path
        self.rows: list[Row] = []
        if path.exists():
            said, self.rows = read_record(path)
            different = [key for key, value in about.items() if said.get("about", {}).get(key) != value]
            if different:
                was, now = said.get("about", {}).get(different[0]), about[different[0]]
                raise InputError(
                    f"{path} holds a sweep with another {different[0]} ({was!r}, now {now!r}): name another --out"
                )
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._write({"about": about, "machine": machine})

    def add(self, row: Row) -> None:
        self._write(row)
        self.rows.append(row)

    def has(self, **key: Any) -> bool:
        return any(all(row.get(name) == value for name, value in key.items()) for row in self.rows)

    def _write(self, value: Row) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(value) + "\n")


def read_record(path: Path) -> tuple[Row, list[Row]]:
    """The first line and the rows. A last line cut off by a kill is dropped. Raises InputError on anything else."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}") from None
    whole, _, rest = text.rpartition("\n")
    if rest:
        path.write_text(whole + "\n" if whole else "", encoding="utf-8")
    try:
        lines = [parse_json(line, path) for line in whole.split("\n") if line]
    except InputError as error:
        raise InputError(f"{error}; it is not a sweep's file: name another --out") from None
    if not lines or not all(isinstance(line, dict) for line in lines) or "about" not in lines[0]:
        raise InputError(f"{path} is not a sweep's file: name another --out")
    return lines[0], lines[1:]
