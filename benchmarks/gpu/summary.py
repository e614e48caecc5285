"""All steps' tables as one text, and what each one ended as."""

from pathlib import Path
from typing import Any

from benchmarks.gpu.plan import STEPS, finished
from benchmarks.gpu.settings import Settings
from benchmarks.gpu.sink import read_lines


def table(rows: list[list[str]]) -> str:
    """Columns as wide as their widest cell; the first row is the head, a row of one cell a line of text."""
    wide = [rows[0], *(row for row in rows if len(row) > 1)]
    widths = [max(len(row[n]) for row in wide if n < len(row)) for n in range(max(map(len, wide)))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)).rstrip() for row in rows]
    return "\n".join([lines[0], "-" * min(160, sum(widths) + 2 * len(widths) - 2), *lines[1:]])


def summary(out: Path, ended: dict[str, dict[str, Any]] | None = None) -> str:
    """Every step in `out` with its table; `ended` as `run_plan` gives it, else as the files say."""
    parts = []
    settings_file = out / "settings.json"
    if settings_file.exists():
        settings = Settings.read(settings_file)
        size = "toy sizes: no figure here means anything" if settings.tiny else "full size"
        parts.append(f"device {settings.device}, {size}, seed {settings.seed}")
    for step, rows in finished(out):
        parts.append(f"== {step.name}: {step.question}\n{table(step.load().summarise(rows))}")
    ends = [["step", "ended", "seconds", "why"]]
    for name in STEPS:
        lines = [line for line in read_lines(out / f"{name}.jsonl") if "status" in line]
        end = (ended or {}).get(name) or (lines[-1] if lines else None)
        if end is not None:
            ends.append([name, end["status"], f"{end.get('seconds', 0):.0f}", str(end.get("why", ""))[:100]])
    if len(ends) > 1:
        parts.append(f"== steps\n{table(ends)}")
    return "\n\n".join(parts) + "\n"
