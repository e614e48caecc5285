"""Kernels on a CPU: a script of this folder runs under Triton's interpreter, which must be asked for before Triton is imported."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
SHIM = ROOT / "tests" / "engines" / "mrv2_on_cpu"


def run_interpreted(script: Path) -> None:
    """Fails with the script's own error where it does not end by printing "equal"."""
    paths = [str(ROOT), str(ROOT / "plugins"), str(SHIM)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.strip().endswith("equal"), done.stderr[-3000:]
