"""The kit on another device than the CPU: a pretended one in a process of its own, and CUDA where there is one."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.gpu import correctness
from benchmarks.gpu.settings import Settings

ROOT = Path(__file__).resolve().parents[3]
CASES = Path(__file__).with_name("other_device.py")


def test_the_kit_holds_on_a_pretended_device() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(CASES)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500, check=False)
    assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-1000:]
    assert " passed" in ended.stdout and "skipped" not in ended.stdout


@pytest.mark.gpu
def test_every_check_of_correctness_holds_on_cuda() -> None:
    settings = replace(Settings(tiny=True, batches=(2,), tokens=4), device="cuda", tiny=False)
    for name, check in correctness.checks(settings):
        if name != "tests marked gpu":
            row = check(settings)
            assert row["ok"], (name, row)
