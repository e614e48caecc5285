"""A sweep on a real server that dies, then one that is interrupted: nothing measured is lost, no process stays."""

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

MARK = "EAGLE3_TEST_RUN"  # inherited by every process a sweep starts


def marked(value: str) -> list[int]:
    """Processes that still run under the mark."""
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit() or int(folder.name) == os.getpid():
            continue
        try:
            if f"{MARK}={value}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                state = (folder / "stat").read_text().rsplit(")", 1)[1].split()[0]
                if state != "Z":
                    found.append(int(folder.name))
        except OSError:
            continue
    return found


@pytest.fixture
def mark() -> Iterator[str]:
    value = uuid.uuid4().hex
    yield value
    for pid in marked(value):
        os.kill(pid, signal.SIGKILL)


def rows(out: Path) -> list[dict[str, object]]:
    if not out.exists():
        return []
    return [json.loads(line) for line in out.read_text().split("\n")[1:] if line]


def wait_for(out: Path, count: int, run: "subprocess.Popen[str]") -> None:
    for _ in range(2400):
        if len(rows(out)) >= count or run.poll() is not None:
            break
        time.sleep(0.1)
    assert run.poll() is None, run.communicate()[1]
    assert len(rows(out)) >= count


def start(target: Path, drafter: Path, folder: Path, mark: str) -> "subprocess.Popen[str]":
    (folder / "p.jsonl").write_text(json.dumps({"id": "1", "family": "f", "turns": ["Name three colours."]}))
    argv = [sys.executable, "-m", "eagle3_serving.cli.main", "bench", "--engine", "vllm", "--settings", "plain"]
    argv += ["--target", str(target), "--drafter", str(drafter), "--prompts", str(folder / "p.jsonl")]
    argv += ["--out", str(folder / "out.jsonl"), "--concurrency", "1", "--least", "1", "--tokens", "8"]
    argv += ["--repeats", "100000"]
    # a child of pytest in the background would ignore SIGINT
    argv = [
        sys.executable,
        "-c",
        f"import os, signal; signal.signal(2, signal.default_int_handler); os.execv({argv[0]!r}, {argv!r})",
    ]
    return subprocess.Popen(
        argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, MARK: mark}
    )


def children(pid: int) -> list[int]:
    return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def gone(mark: str) -> bool:
    """Whether all have ended within ten seconds."""
    for _ in range(50):
        if not marked(mark):
            return True
        time.sleep(0.2)
    return False


@pytest.mark.engine
def test_a_death_and_an_interruption(target_dir: Path, drafter_dir: Path, tmp_path: Path, mark: str) -> None:
    pytest.importorskip("vllm")
    out = tmp_path / "out.jsonl"
    run = start(target_dir, drafter_dir, tmp_path, mark)
    wait_for(out, 2, run)
    server, _ = children(run.pid)  # and its warden, who was started after it
    os.killpg(server, signal.SIGKILL)
    _, said = run.communicate(timeout=120)
    last = said.strip().splitlines()[-1]
    assert run.returncode == 1 and last.startswith("eagle3 bench: the server at ") and "Traceback" not in said
    assert gone(mark)
    kept = rows(out)
    assert len(kept) >= 2

    run = start(target_dir, drafter_dir, tmp_path, mark)
    wait_for(out, len(kept) + 2, run)
    run.send_signal(signal.SIGINT)
    _, said = run.communicate(timeout=120)
    assert (
        run.returncode == 130
        and said.strip().splitlines()[-1] == "eagle3 bench: interrupted"
        and "Traceback" not in said
    )
    assert gone(mark)
    assert rows(out)[: len(kept)] == kept and len(rows(out)) >= len(kept) + 2
    assert [row["round"] for row in rows(out)] == list(range(len(rows(out))))
