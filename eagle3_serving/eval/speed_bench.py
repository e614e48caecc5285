"""SPEED-Bench as NVIDIA lays it out: a folder a split (`qualitative`, `throughput_1k`, ...) of parquet files, or the same rows
as JSON lines. A row has `question_id`, `category` (coding, math, reasoning, ...; low or high entropy) and `turns`.

The data set's licence forbids handing it on, so that whoever has it names the folder. As downloaded, some rows hold a
placeholder that the benchmark's own `prepare_data.py` replaces.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from eagle3_serving.errors import InputError

_PLACEHOLDER = "FULL BENCHMARK DATA SHOULD BE FETCHED FROM THE SOURCE"


def parquet_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Raises InputError where pyarrow is missing or the file is not such a table."""
    try:
        import pyarrow.parquet
    except ImportError:
        raise InputError(f"{path} needs pyarrow: pip install 'eagle3-serving[speed-bench]'") from None
    try:
        table = pyarrow.parquet.read_table(path, columns=["question_id", "category", "turns"])
    except (OSError, ValueError, KeyError) as error:  # pyarrow's own errors are these
        raise InputError(f"{path} is no table of SPEED-Bench: {str(error).splitlines()[0]}") from None
    yield from table.to_pylist()


def is_row(value: dict[str, Any]) -> bool:
    return "question_id" in value and "category" in value


def as_prompt(value: dict[str, Any], where: str) -> dict[str, Any]:
    """A row in this project's words. Raises InputError where its text is still to be fetched."""
    turns = value.get("turns")
    if isinstance(turns, list) and any(_PLACEHOLDER in str(turn) for turn in turns):
        raise InputError(f"{where}: the text of this row is not there yet: run SPEED-Bench's own prepare_data.py")
    return {"id": value["question_id"], "family": value["category"], "turns": turns}
