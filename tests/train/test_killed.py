"""A run that SIGKILL ends at random places, five times, comes to the same weights bit for bit."""

import json
import subprocess
import sys
from pathlib import Path

import torch

KILLS = 5


def test_five_kills_leave_no_trace(tmp_path: Path) -> None:
    script = Path(__file__).with_name("killed.py")
    done = subprocess.run(
        [sys.executable, script, tmp_path, str(KILLS)], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    places = json.loads((tmp_path / "places.json").read_text())
    assert len(places) == KILLS and len(set(places)) > 1
    killed, whole = (torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("killed", "whole"))
    assert len(killed) == len(whole) > 20
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(killed, whole, strict=True))
    logs = [
        [json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]
        for name in ("killed", "whole")
    ]
    for lines in logs:
        for line in lines:
            del line["time"]
    # the curve too: every step once, and the same
    assert logs[0] == logs[1]
    assert not list((tmp_path / "killed").rglob("*.partial")) or (tmp_path / "killed" / "state.pt").exists()
