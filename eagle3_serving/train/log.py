"""The log of a run: JSON lines, of which a resumed run keeps those that its state knows of."""

import contextlib
import json
from pathlib import Path
from typing import Any

from eagle3_serving.errors import CheckError
from eagle3_serving.files import write_whole


class RunLog:
    """`path` with one record a line, each with its `step`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def add(self, record: dict[str, Any]) -> None:
        """Raises CheckError where it cannot be written."""
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        except OSError as error:
            raise unwritten(self.path, error) from None

    def forget_after(self, step: int) -> None:
        """Take what came after `step` off, and half a line: it will be logged again."""
        kept = []
        lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True) if self.path.exists() else []
        for line in lines:
            with contextlib.suppress(ValueError):
                if json.loads(line)["step"] <= step:
                    kept.append(line)
        if len(kept) < len(lines):
            write_whole(self.path, "".join(kept))


def read_log(path: Path) -> list[dict[str, Any]]:
    """The records of a run's log."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def unwritten(path: Path, error: Exception) -> CheckError:
    """What a run says when the disk is full."""
    reason = error.strerror if isinstance(error, OSError) else "the disk is full, or the folder cannot be written"
    return CheckError(
        f"{path} cannot be written ({reason}); what was saved before is whole: "
        "free some space and give the same command again"
    )
