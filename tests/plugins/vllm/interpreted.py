"""Kernels on a CPU: scripts of this folder run under Triton's interpreter, which must be asked for before Triton is imported.

One process runs them all, since to import vLLM takes longer than they do.
"""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
RUN = "import runpy, sys\nfor path in sys.argv[1:]: runpy.run_path(path, run_name='__main__'); print('equal:', path)"


def run_interpreted(scripts: Sequence[str]) -> None:
    """Fails with the first script's error that does not run to its end."""
    folders = (ROOT, ROOT / "plugins", ROOT / "tests" / "engines" / "mrv2_on_cpu")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, folders)), "OMP_NUM_THREADS": "1"}
    paths = [str(Path(__file__).with_name(name)) for name in scripts]
    done = subprocess.run(
        [sys.executable, "-c", RUN, *paths], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert [line for line in done.stdout.splitlines() if line.startswith("equal: ")] == [f"equal: {p}" for p in paths]
