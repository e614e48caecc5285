"""Steps without drafts, on real vLLM: what they leave out of the drafter's cache is there when drafting goes on, and requests
whose gate is closed have one row a step."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm")


@pytest.fixture(scope="module")
def said(target_dir: Path, drafter_dir: Path) -> dict[str, Any]:
    script = Path(__file__).with_name("idle_in_vllm.py")
    done = subprocess.run(
        [sys.executable, str(script), str(target_dir), str(drafter_dir)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


@pytest.mark.supports("vllm", "chain", "no drafts at some loads")
def test_drafts_after_idle_steps_are_those_of_a_drafter_that_always_ran(said: dict[str, Any]) -> None:
    assert said["ours"] == said["vLLM's"]
    assert said["never taken in"]["tokens"] == said["ours"]["tokens"]
    assert said["never taken in"]["accepted_after"] < said["ours"]["accepted_after"]


@pytest.mark.supports("vllm", "chain", "drafts by request")
def test_whatever_is_gated_the_tokens_are_plain_decodings(said: dict[str, Any]) -> None:
    gates = said["gates"]
    assert {name for name, part in gates.items() if part["tokens"] == gates["plain"]["tokens"]} == set(gates)


def test_where_all_are_off_the_drafter_is_not_asked(said: dict[str, Any]) -> None:
    plain = said["gates"]["plain"]
    assert set(plain["drafting"]) == {0}
    assert all(set(rows) == {1} for rows in plain["rows"])
    assert set(plain["closed"]) == {"request own"}


@pytest.mark.supports("vllm", "chain", "drafts by request")
def test_each_request_has_the_rows_it_asked_for(said: dict[str, Any]) -> None:
    """Off, two draft tokens at most, and what the server drafts, in one batch."""
    mixed = said["gates"]["mixed"]
    assert [set(rows) - {None} for rows in mixed["rows"]] == [{1}, {3}, {5}]
    assert [set(drafts) for drafts in mixed["drafts"]] == [{0}, {2}, {4}]


@pytest.mark.supports("vllm", "chain", "no drafts for who gains nothing")
def test_who_gains_too_little_has_one_row_a_step_after_a_few(said: dict[str, Any]) -> None:
    judged = said["gates"]["accepted"]
    for rows in judged["rows"]:
        drafted = [row for row in rows if row is not None and row > 1]
        assert len(drafted) in (8, 9)  # results are heard of a step later
        assert set(rows[len(drafted) :]) - {None} == {1}
    assert 0 in judged["drafting"] and set(judged["closed"]) == {"accepted own"}


@pytest.mark.supports("vllm", "chain", "no drafts past a length of context")
def test_past_the_bound_of_context_nothing_is_drafted(said: dict[str, Any]) -> None:
    bounded = said["gates"]["context"]
    assert set(bounded["closed"]) == {"context own"}
    for drafts in bounded["drafts"]:
        assert drafts[0] == 4 and drafts[-1] == 0 and drafts == sorted(drafts, reverse=True)
