"""A step's JSON lines: a header that says what was asked, rows by key, a last line that says how it ended.

A row once written is kept: a step that was killed goes on behind it, and one whose inputs changed begins anew.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any


class Unavailable(Exception):
    """The step cannot run here, and why in one line: not a failure."""


def read_lines(path: Path) -> list[dict[str, Any]]:
    """All whole lines; one cut short by a kill is left out."""
    if not path.exists():
        return []
    lines = []
    for line in path.read_text(encoding="utf-8").split("\n"):
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict):
            lines.append(value)
    return lines


class Sink:
    """`inputs` must be JSON-like; a file with other inputs is put aside as FILE.old."""

    def __init__(self, path: Path, inputs: dict[str, Any]) -> None:
        self.path = path
        lines = read_lines(path)
        self.inputs = inputs = json.loads(json.dumps(inputs))
        if lines and lines[0].get("inputs") != inputs:
            path.replace(path.with_name(path.name + ".old"))
            lines = []
        # the line that a kill cut, and how an earlier try ended, go
        self.rows = [line for line in lines if "key" in line]
        self._write([{"inputs": inputs}, *self.rows])

    def _write(self, lines: list[dict[str, Any]]) -> None:
        beside = self.path.with_name(f".{self.path.name}.partial")
        beside.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        beside.replace(self.path)

    def forget(self, which: Callable[[dict[str, Any]], bool]) -> None:
        """Rows that are to be made anew go."""
        kept = [row for row in self.rows if not which(row)]
        if len(kept) < len(self.rows):
            self.rows = kept
            self._write([{"inputs": self.inputs}, *kept])

    def has(self, key: str) -> bool:
        return any(row["key"] == key for row in self.rows)

    def get(self, key: str) -> dict[str, Any] | None:
        return next((row for row in self.rows if row["key"] == key), None)

    def add(self, key: str, **figures: Any) -> dict[str, Any]:
        """Write one row at once, and show it."""
        row = {"key": key, **figures}
        self.rows.append(row)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps(row), flush=True)
        return row

    def end(self, status: str, **more: Any) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"status": status, **more}) + "\n")
