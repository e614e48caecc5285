"""The kernels' tests under Triton's interpreter, on a machine without a GPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("vllm")

HERE = Path(__file__).parent
ROOT = HERE.parents[3]
SHIM = HERE.parents[2] / "engines" / "mrv2_on_cpu"
GROUPS = (
    ("begin", "accept", "moves", "absorb", "propose", "trees"),
    ("expand", "select", "launches", "noise"),
    ("tree_block", "split_kv", "backend"),
)


@pytest.mark.skipif(torch.cuda.is_available(), reason="they run on the GPU")
@pytest.mark.parametrize("names", GROUPS, ids="-".join)
def test_under_the_interpreter(names: tuple[str, ...]) -> None:
    known = os.environ.get("PYTHONPATH")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(SHIM), *([known] if known else [])])}
    # the shim itself sets it, but pytest's own conftest is read by then
    environment["TRITON_INTERPRET"] = "1"
    files = [str(HERE / f"test_{name}_kernel.py") for name in names]
    options = ["-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", "--no-header"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *files],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert " passed" in done.stdout and "skipped" not in done.stdout


def test_every_kernel_has_its_test() -> None:
    tested = {name for group in GROUPS for name in group}
    assert tested == {path.name[len("test_") : -len("_kernel.py")] for path in HERE.glob("test_*_kernel.py")}
