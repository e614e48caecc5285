"""Files that are either whole or not there."""

from pathlib import Path


def write_whole(path: Path, content: str | bytes) -> None:
    """Written beside and renamed, so that a reader or a kill never meets half of it. Makes the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.partial")
    beside.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
    beside.replace(path)
