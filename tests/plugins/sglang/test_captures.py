"""What our worker does inside SGLang's CUDA graphs obeys a capture's rules: held to them on a pretended device."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from eagle3_serving.errors import InputError
from eagle3_serving.serve.sglang import sglang_python

TESTS = Path(__file__).resolve().parents[2]
ROOT, PLUGINS = TESTS.parent, TESTS.parent / "plugins"


def by_sglang(script: str) -> Any:
    """The last line's JSON of a script beside this file, run by SGLang's interpreter."""
    try:
        python = sglang_python()
    except InputError as error:
        pytest.skip(str(error))
    done = subprocess.run(
        [python, Path(__file__).with_name(script)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env={
            **os.environ,
            "SGLANG_USE_CPU_ENGINE": "1",
            "PYTHONPATH": os.pathsep.join(map(str, (TESTS, ROOT, PLUGINS))),
        },
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def drafts() -> Any:
    return by_sglang("captures.py")


def test_every_tree_at_every_size_is_captured_and_replays_what_an_eager_draft_gives(drafts: Any) -> None:
    assert not drafts["wrong"]
    assert drafts["held"] == 40


@pytest.mark.parametrize(
    ("fault", "found"),
    [
        ("Uploading", "copies from the host"),
        ("Reading", "reads on the host"),
        ("ByData", "reads on the host"),
        ("Baking", "differs"),
    ],
)
def test_a_planted_fault_is_found(fault: str, found: str, drafts: Any) -> None:
    assert found in drafts["planted"][fault]


def test_a_step_waits_for_nothing_and_its_cost_is_the_devices(drafts: Any) -> None:
    """At 1, 8 and 64 requests, another tree every step and the policy's own choice."""
    for steps in drafts["steps"]:
        assert steps["reads"] == steps["waits"] == 0, steps
        # measured at start by replaying the graphs, then by the device's events while serving
        assert all(abs(share - 0.8) < 1e-6 for share in steps["replayed"]), steps
        assert steps["measured"] and all(abs(share - 1.0) < 1e-6 for share in steps["measured"]), steps
    assert all(steps["served"] == 6 and steps["passes"] > 0 for steps in drafts["steps"][::2])
    assert all(waits > 10 for waits in drafts["waiting"])
