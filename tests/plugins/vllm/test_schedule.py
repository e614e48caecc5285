"""The batch-to-tokens schedule, on costs that are made up and known."""

import json
from pathlib import Path

import pytest
from eagle3_vllm.profile import line
from eagle3_vllm.schedule import Profile

from eagle3_serving.errors import InputError

# alone a pass of five rows costs hardly more than one; at 16 requests rows cost what they are
COSTS = {
    1: {0: 1.0, 1: 1.1, 2: 1.2, 4: 1.5},
    4: {0: 1.0, 1: 1.3, 2: 1.7, 4: 2.6},
    16: {0: 1.0, 1: 1.9, 2: 2.9, 4: 4.9},
}
PROFILE = Profile((0.7, 0.5, 0.3, 0.2), COSTS, {})


def test_speed_is_tokens_over_seconds_beside_plain_decoding() -> None:
    assert PROFILE.speed(1, 2) == pytest.approx((1 + 0.7 + 0.5) / 1.2)
    assert PROFILE.speed(16, 0) == 1.0


def test_the_schedule_takes_what_pays_and_nothing_where_nothing_does() -> None:
    assert PROFILE.schedule(4) == [(1, 1, 2), (2, 4, 1), (5, 16, 0)]


def test_it_never_drafts_more_than_the_server_may() -> None:
    assert PROFILE.schedule(1) == [(1, 4, 1), (5, 16, 0)]


def test_a_gain_within_the_margin_is_no_gain() -> None:
    assert Profile((0.24,), {1: {0: 1.0, 1: 1.2}}, {}).schedule(1) == [(1, 1, 0)]


def test_equal_neighbours_are_one_entry_and_vllm_takes_the_form() -> None:
    utils = pytest.importorskip("vllm.v1.spec_decode.dynamic.utils")
    lookup = utils.build_dynamic_sd_schedule_lookup(PROFILE.schedule(4), 32, 4)
    assert lookup[1:6] == [2, 1, 1, 1, 0] and lookup[32] == 0


def test_it_is_kept_and_read_again(tmp_path: Path) -> None:
    PROFILE.save(tmp_path / "p.json")
    assert Profile.read(tmp_path / "p.json") == PROFILE
    assert list(tmp_path.iterdir()) == [tmp_path / "p.json"]


@pytest.mark.parametrize(
    "change",
    [
        {"acceptance": []},
        {"acceptance": [1.5]},
        {"step_seconds": {"1": {"1": 1.0}}},
        {"step_seconds": {"1": {"0": -1.0}}},
        {"step_seconds": None},
    ],
)
def test_what_is_no_profile_is_refused_by_name(tmp_path: Path, change: dict[str, object]) -> None:
    PROFILE.save(tmp_path / "p.json")
    raw = json.loads((tmp_path / "p.json").read_text())
    (tmp_path / "p.json").write_text(json.dumps({**raw, **change}))
    with pytest.raises(InputError, match=r"p\.json is no profile"):
        Profile.read(tmp_path / "p.json")


def test_a_prefill_is_seconds_at_no_token_and_a_token_more() -> None:
    assert line([(10, 2.0), (30, 4.0)]) == pytest.approx((1.0, 0.1))
    assert line([(10, 2.0), (10, 4.0)]) == pytest.approx((0.0, 0.3))
    assert line([(10, 4.0), (30, 2.0)]) == pytest.approx((0.0, 0.15))  # a busy minute, not a gain
