"""Steps without drafts, on real vLLM: what they leave out of the drafter's cache is there when drafting goes on."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("vllm")


@pytest.mark.supports("vllm", "chain", "no drafts at some loads")
def test_drafts_after_idle_steps_are_those_of_a_drafter_that_always_ran(target_dir: Path, drafter_dir: Path) -> None:
    script = Path(__file__).with_name("idle_in_vllm.py")
    done = subprocess.run(
        [sys.executable, str(script), str(target_dir), str(drafter_dir)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["ours"] == said["vLLM's"]
    assert said["never taken in"]["tokens"] == said["ours"]["tokens"]
    assert said["never taken in"]["accepted_after"] < said["ours"]["accepted_after"]
