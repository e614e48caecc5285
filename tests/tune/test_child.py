"""A measuring process and all it started end with whoever measures."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

CHILD = """
import subprocess, sys, time
one = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
open(sys.argv[1], "w").write(f"{one.pid}\\n")
time.sleep(600)
"""
PARENT = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job inherits it ignored
from eagle3_serving.tune.child import run_child
run_child([sys.executable, "-c", sys.argv[1], sys.argv[2]])
"""


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def waited(condition: object, seconds: float = 20.0) -> bool:
    assert callable(condition)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.1)
    return False


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_nothing_stays_behind(number: signal.Signals, tmp_path: Path) -> None:
    told = tmp_path / "pid"
    root = Path(__file__).resolve().parents[2]
    argv = [sys.executable, "-c", PARENT, CHILD, str(told)]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    with subprocess.Popen(argv, stderr=subprocess.DEVNULL, env=environment) as parent:
        try:
            assert waited(lambda: told.exists() and told.read_text().endswith("\n"), 60)
            pid = int(told.read_text())
            assert runs(pid)
            parent.send_signal(number)
            parent.wait(30)
        finally:
            parent.kill()
    assert waited(lambda: not runs(pid))
