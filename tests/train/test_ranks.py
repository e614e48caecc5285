"""Two ranks under torchrun keep one set of weights, and average by rows."""

import json
import subprocess
import sys
from pathlib import Path

import torch


def test_two_ranks_train_one_drafter(tmp_path: Path) -> None:
    script = Path(__file__).with_name("two_ranks.py")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    done = subprocess.run([*command, str(tmp_path / "run")], capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    end = torch.load(tmp_path / "run" / "done.pt", weights_only=True)
    assert end["seen"] >= 500 and end["steps"] > 3
    records = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    steps = [record["step"] for record in records if "loss" in record]
    assert steps == list(range(1, end["steps"] + 1)), "one rank alone writes the log"
    state = torch.load(tmp_path / "run" / "state.pt", weights_only=True)
    assert state["recipe"]["ranks"] == 2 and state["seen_tokens"] == end["seen"]
