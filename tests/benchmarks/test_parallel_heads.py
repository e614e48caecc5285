"""The benchmark of parallel heads: a step's time is noted where it was a step, and the policy is what it was afterwards."""

import sys
from pathlib import Path

import pytest

from benchmarks.parallel_heads import Seconds, lengths, observed, times
from eagle3_serving.engine import DecodeOptions
from eagle3_serving.engine.policy import FixedPolicy

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "engine"))
from tiny import tiny_engine


@pytest.mark.parametrize("mask_token_id", [None, 3])
def test_every_step_but_a_prompts_is_timed(mask_token_id: int | None) -> None:
    before, steps = FixedPolicy.observe, Seconds()
    prompts = [[1, 2, 3], [4, 5, 6, 7, 8, 9, 1, 2, 3, 4]]
    with observed(steps):
        said = tiny_engine(0, layers=2, mask_token_id=mask_token_id).generate_many(
            prompts, DecodeOptions(16, "chain", k=3)
        )
    assert FixedPolicy.observe is before
    assert len(steps) == sum(one.steps for one in said) - 1  # the longer prompt was taken in with its first step
    found = lengths({"a": said[:1], "b": said[1:]}) | times(steps)
    assert found["accepted_length"] == pytest.approx(sum(one.accepted_length for one in said) / 2, abs=1e-3)
    assert 0 < found["draft_ms"] <= found["step_ms"] and 0 < found["verify_ms"] <= found["step_ms"]
