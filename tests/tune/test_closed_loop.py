"""Loads whose seconds are known by hand."""

import pytest

from eagle3_serving.tune.closed_loop import Course, between, play, rate


def course(step: dict[int, float], given: int = 1) -> Course:
    return Course(lambda joining: 10.0 * len(joining), lambda batch: step[batch], lambda *_: given)


def test_one_after_the_other() -> None:
    # a prefill gives the first token, five steps the others
    assert play(course({1: 2.0}), requests=3, concurrency=1, tokens=6) == 3 * (10 + 5 * 2)


def test_accepted_drafts_save_steps_and_the_last_is_cut_off() -> None:
    assert play(course({1: 2.0}, given=3), requests=1, concurrency=1, tokens=6) == 10 + 2 * 2


def test_a_whole_batch_runs_in_lock_step() -> None:
    assert play(course({4: 3.0}), requests=8, concurrency=4, tokens=6) == 2 * (40 + 5 * 3)


def test_the_slowest_request_ends_the_load_in_a_batch_of_one() -> None:
    steps = {2: 5.0, 1: 1.0}
    uneven = Course(lambda _: 0.0, lambda batch: steps[batch], lambda request, *_: 4 - 3 * request)
    assert play(uneven, requests=2, concurrency=2, tokens=9) == 2 * 5 + 6 * 1


def test_those_in_flight_go_on_beside_a_prefill() -> None:
    uneven = Course(
        lambda joining: 10.0 * len(joining), lambda batch: float(batch), lambda request, *_: 4 if request == 0 else 1
    )
    # request 0 ends after one step, 2 takes its place while 1 makes a step, then both run to 1's end, then 2 alone
    assert play(uneven, requests=3, concurrency=2, tokens=5) == 20 + 2 + (10 + 1) + 2 * 2 + 2 * 1


def test_a_rate_is_the_mean_of_plays_with_other_requests() -> None:
    alternating = Course(lambda _: 0.0, lambda batch: 1.0, lambda request, *_: 1 + request % 2)
    # 4 or 2 steps for 5 tokens
    assert rate(alternating, requests=1, concurrency=1, tokens=5, plays=2) == pytest.approx(5 / 3)


def test_between_sizes_is_a_line_and_outside_level() -> None:
    points = {1: 2.0, 4: 8.0, 16: 8.0}
    assert [between(points, batch) for batch in (1, 2, 4, 10, 40)] == [2.0, 4.0, 8.0, 8.0, 8.0]
