"""What SGLang's sweep makes of its rounds."""

from typing import Any

from benchmarks.sglang_sweep import answer_lengths, bounds, ratios, table

SPEEDS = {
    # server -> tokens a second by round at 2 and at 8 in flight; `1:4:3` was left out after the first round
    "plain": {2: [10.0, 20.0, 10.0], 8: [40.0, 40.0, 80.0]},
    "auto": {2: [11.0, 24.0, 10.0], 8: [38.0, 42.0, 80.0]},
    "3:4:6": {2: [10.0, 12.0, 8.0], 8: [40.0, 40.0, 40.0]},
    "1:4:3": {2: [30.0], 8: [20.0]},
    "own:5:4:8": {2: [50.0], 8: [50.0]},
}
ROWS: list[dict[str, Any]] = [
    {"server": server, "batch": batch, "round": turn, "tokens_per_second": speed, "length": 1.5}
    for server, by_batch in SPEEDS.items()
    for batch, speeds in by_batch.items()
    for turn, speed in enumerate(speeds)
]


def test_ratios_are_of_one_round() -> None:
    assert ratios(ROWS, "auto", "plain", 2) == [1.1, 1.2, 1.0]
    assert ratios(ROWS, "1:4:3", "plain", 2) == [3.0]


def test_a_bound_is_a_median_over_the_rounds_that_both_were_in() -> None:
    found = bounds(ROWS)
    # SGLang's own tree is no tree of ours, and one round is no comparison with what ran for three
    assert found[2] == {
        "best_fixed": "3:4:6",
        "to_plain": 1.1,
        "to_plain_spread": [1.0, 1.2],
        "to_best_fixed": 1.25,
        "to_best_fixed_spread": [1.1, 2.0],
    }
    assert found[8]["to_plain"] == 1.0 and found[8]["to_plain_spread"] == [0.95, 1.05]


def test_the_table_keeps_who_was_measured_once() -> None:
    assert table(ROWS)["own:5:4:8"][8]["ratio"] == 1.25


def test_answers_differ_in_length_alike_for_all() -> None:
    lengths = answer_lengths(32, 200)
    assert lengths == answer_lengths(32, 200)
    assert min(lengths) == 16 and max(lengths) == 48 and 30 < sum(lengths) / 200 < 34
