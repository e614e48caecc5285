"""The GPU kit's steps on real engines, rehearsed whole: a toy pair, one engine at a time, every row that a GPU would give
but its launches."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu.sink import read_lines
from eagle3_serving.errors import InputError
from eagle3_serving.serve.sglang import sglang_python

ROOT = Path(__file__).resolve().parents[2]
TINY = ("--device", "cpu", "--tiny", "--pairs", "real", "--tokens", "8")
pytestmark = pytest.mark.engine


def rehearse(out: Path, *arguments: str) -> tuple[dict[str, dict[str, Any]], str]:
    """Rows by key, and what was printed."""
    path = os.pathsep.join(filter(None, [str(ROOT), str(ROOT / "plugins"), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-m", "benchmarks.gpu", "--out", str(out), *TINY, *arguments]
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (file,) = out.glob("*.jsonl")
    return {row["key"]: row for row in read_lines(file) if "key" in row}, done.stdout


def test_vllm_plain_and_a_tree(tmp_path: Path) -> None:
    pytest.importorskip("vllm")
    rows, said = rehearse(tmp_path, "--steps", "vllm", "--in-flight", "1,2", "--contenders", "tree-8")
    start = rows["toy/tree-8/start"]
    assert start["start_s"] > 0 and start["mode"] in ("tree", "auto") and "Tree" in start["speculator"]
    assert {"execute_model", "propose"} <= rows["toy/tree-8/detail at 1"]["parts_ms"].keys()
    for flight in (1, 2):
        load = rows[f"toy/tree-8/at {flight}/round 0"]
        assert load["simulated"] is False and load["nodes"] == 8.0 and load["drafts"] > 0
        # in fp32 no answer may differ
        assert rows[f"toy/tree-8/answers at {flight}"]["ok"]
    result = rows["toy/tree-8/at 1"]
    assert result["accepted_length"] > 1 and result["to_plain"] > 0
    assert "tree-8: accepted, measured" in said


def test_sglang_plain(tmp_path: Path) -> None:
    try:
        sglang_python()
    except InputError as error:
        pytest.skip(str(error))
    rows, said = rehearse(tmp_path, "--steps", "sglang", "--in-flight", "2", "--contenders", "plain")
    assert rows["toy/plain/start"]["version"] and rows["toy/plain/start"]["graphs"] == "NONE"
    assert rows["toy/plain/at 2/round 0"]["step_ms"] > 0
    assert "plain: ms a step" in said
