"""The attention kernels compile for sm_90 here, and no register spills at the shapes of a verify pass."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

triton = pytest.importorskip("triton")
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


@pytest.mark.skipif(not (TOOLS / "cuobjdump").exists(), reason="this Triton brings no assembler for NVIDIA")
def test_nothing_spills_at_17_and_61_rows() -> None:
    command = [sys.executable, "-m", "benchmarks.kernel_registers", "--quick"]
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert {(row["kernel"], row["rows"]) for row in rows} >= {(k, r) for k in ("block", "split") for r in (17, 61)}
    assert all(row["stack"] == 0 and row["shared"] <= 227 << 10 for row in rows), rows
