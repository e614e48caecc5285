"""The kernels as Triton and its ptxas make them for an H100: no thread may spill what it works on to memory."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

ROOT = Path(__file__).resolve().parents[4]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Triton compiles on Linux alone")
def test_no_kernel_spills_on_an_h100(tmp_path: Path) -> None:
    folders = (str(ROOT), str(ROOT / "plugins"), os.environ.get("PYTHONPATH"))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, folders))}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path), "TRITON_INTERPRET": "0"}
    script = [sys.executable, "-m", "benchmarks.kernel_registers", "--quick"]  # the largest trees and vocabulary of use
    done = subprocess.run(script, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    # one a function, two for `expand` and for split attention, one for a tree's block
    assert len({row["kernel"] for row in rows}) == 10
    assert not [row for row in rows if row["stack"] or row["shared"] > 227 << 10], rows
