"""Which tree is drafted, by costs that are a staircase and gains that are learned."""

from pathlib import Path

import pytest
from eagle3_vllm.choice import LOOK_EVERY, TRIES, Choice, first_schedule, read_costs, save_costs

from eagle3_serving.errors import InputError
from eagle3_serving.serve.shape import Shape

PLAIN, CHAIN, SMALL, LARGE = Shape.nothing(1), Shape.chain(3), Shape(5, 4, 9), Shape(6, 8, 17)
SHAPES = (LARGE, PLAIN, SMALL, CHAIN)
# a GPU: rows are free while they are few, and then they are not
COSTS = {
    1: {1: 6.4, 4: 7.8, 9: 9.0, 17: 9.4},
    8: {1: 6.5, 4: 8.0, 9: 9.2, 17: 10.0},
    64: {1: 7.5, 4: 10.7, 9: 16.0, 17: 40.0},
}
GAINS = {4: 1.9, 9: 2.6, 17: 3.2}


def taught(gains: dict[int, float] = GAINS) -> Choice:
    choice = Choice(SHAPES, COSTS)
    for tokens, gain in gains.items():
        for i in range(4 * TRIES):
            choice.report_accepted(tokens, int(gain) + (i % 10 < round(10 * (gain % 1))))
    return choice


def test_the_best_rate_is_taken_at_each_load() -> None:
    choice = taught()
    for batch in (1, 3, 8, 40, 64):
        best = max(SHAPES, key=lambda s: (1 + GAINS.get(s.tokens, 0)) / choice.cost(batch, s))
        assert choice.choose(batch) == best
    assert choice.choose(1) == LARGE and choice.choose(64) == CHAIN


def test_a_batch_costs_what_the_graph_that_holds_it_costs() -> None:
    choice = taught()
    assert [choice.cost(batch, LARGE) for batch in (1, 2, 8, 9, 64, 128)] == [9.4, 10.0, 10.0, 40.0, 40.0, 80.0]


@pytest.mark.parametrize("batch", [1, 8, 64])
def test_where_nothing_is_accepted_nothing_is_drafted(batch: int) -> None:
    assert taught(dict.fromkeys(GAINS, 0.0)).choose(batch) == PLAIN


@pytest.mark.parametrize("batch", [1, 4, 16, 64])
def test_never_below_the_better_of_plain_and_chain(batch: int) -> None:
    """Whatever is accepted, once it is known: what is chosen is at most the margin behind either."""
    for gain in (0.0, 0.2, 0.5, 1.0, 1.5, 2.0, 2.9):
        truth = {4: min(gain, 2.9), 9: gain, 17: gain * 1.1}
        choice = taught(truth)
        rates = {s: (1 + truth.get(s.tokens, 0)) / choice.cost(batch, s) for s in SHAPES}
        assert rates[choice.choose(batch)] >= max(rates[PLAIN], rates[CHAIN]) / 1.04


def test_assumed_gains_stand_whatever_is_accepted() -> None:
    choice = Choice(SHAPES, COSTS, GAINS)
    for _ in range(500):
        choice.report_accepted(choice.choose(1).tokens, 0)
    assert choice.choose(1) == LARGE and choice.choose(64) == CHAIN


def test_every_tree_that_may_pay_is_tried_and_then_judged() -> None:
    choice = Choice(SHAPES, COSTS)
    drafted = []
    for _ in range(200):
        shape = choice.choose(1)
        drafted.append(shape)
        choice.report_accepted(shape.tokens, 1)  # one draft, whichever tree
    assert set(drafted[:120]) >= {CHAIN, SMALL, LARGE}
    assert set(drafted[150:]) == {CHAIN}  # the cheapest of those that yield the same


def test_others_are_looked_at_now_and_then_and_come_back() -> None:
    choice = taught()
    for _ in range(3 * LOOK_EVERY + 50):
        shape = choice.choose(8)
        # the text has changed: the large tree yields no more than a chain, the small one does
        choice.report_accepted(shape.tokens, 3 if shape == SMALL else 1)
    assert choice.choose(8) == SMALL


def test_a_tree_in_use_gives_way_only_to_one_that_is_clearly_better() -> None:
    choice = taught({4: 1.0, 9: 1.3, 17: 1.0})
    assert choice.choose(1) == choice.choose(1)
    before = choice.choose(1)
    for _ in range(5):
        choice.report_accepted(9 if before != SMALL else 4, 2)
    assert choice.choose(1) == before


def test_drafts_of_a_tree_that_was_cut_say_nothing() -> None:
    choice = taught()
    before = {s: choice.gain(s) for s in SHAPES}
    choice.report_accepted(13, 0)
    assert {s: choice.gain(s) for s in SHAPES} == before


def test_the_first_schedule_fits_rows_to_the_batch() -> None:
    assert first_schedule(SHAPES, 64, 256) == [(1, 15, 16), (16, 28, 8), (29, 64, 3)]
    assert first_schedule(SHAPES, 4, 256) == [(1, 4, 16)]
    assert first_schedule((SMALL, PLAIN), 64, 16) == [(1, 64, 8)]


def test_costs_survive_a_file_and_what_is_none_is_named(tmp_path: Path) -> None:
    save_costs(tmp_path / "costs", COSTS)
    assert read_costs(tmp_path / "costs") == COSTS
    for text in ("", "[]", "{}", '{"1": {"4": -1}}', '{"1": 3}'):
        (tmp_path / "bad").write_text(text)
        with pytest.raises(InputError, match="bad holds no costs"):
            read_costs(tmp_path / "bad")
    with pytest.raises(InputError, match="no cost of tree 5,4,9"):
        Choice(SHAPES, {1: {1: 1.0, 4: 1.0, 17: 1.0}})
