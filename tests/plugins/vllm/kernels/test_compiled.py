"""The kernels as Triton and its ptxas make them for an H100: no thread may spill what it works on to memory."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

HERE = Path(__file__).parent
ROOT = HERE.parents[3]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Triton compiles on Linux alone")
@pytest.mark.parametrize("nodes, vocab", [(16, 32000), (64, 128256)])
def test_no_kernel_spills_on_an_h100(nodes: int, vocab: int, tmp_path: Path) -> None:
    known = os.environ.get("PYTHONPATH")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *([known] if known else [])])}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path), "TRITON_INTERPRET": "0"}
    script = [sys.executable, str(HERE / "compiled.py"), str(nodes), str(vocab)]
    done = subprocess.run(script, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert len({row["kernel"] for row in rows}) >= 4
    assert not [row for row in rows if row["spilled"]], rows
