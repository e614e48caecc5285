"""Which tree is drafted, by costs that are a staircase and gains that are learned."""

from pathlib import Path

import pytest
from eagle3_vllm.choice import LOOK_EVERY, TRIES, Choice, first_schedule, read_costs, save_costs
from eagle3_vllm.scheduling import ByLoad, decode_step
from vllm.v1.core.sched.output import SchedulerOutput

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


def test_what_serving_adds_to_the_graphs_is_learned() -> None:
    """As of a small target: graphs of half a millisecond, and a host that takes longer to launch a draft."""
    graphs = {batch: {tokens: ms / 10 for tokens, ms in row.items()} for batch, row in COSTS.items()}
    choice, told = (Choice(SHAPES, graphs, GAINS, learn=learn) for learn in (True, False))
    assert choice.choose(1) == told.choose(1) == LARGE
    for _ in range(3):
        for one in (choice, told):
            one.report_step(1, LARGE.tokens, 5.0)
            one.report_step(1, 13, 5.0)  # a tree that was cut
    assert told.choose(1) == LARGE  # costs that were told are whole steps'
    assert choice.cost(1, LARGE) == 5.0 and choice.cost(8, LARGE) == pytest.approx(1.0 + 5.0 - 0.94)
    assert choice.choose(1) == PLAIN  # whose graphs alone are known: it is tried
    for _ in range(3):
        choice.report_step(1, 1, 1.2)
    assert choice.choose(1) == PLAIN and choice.choose(2) == PLAIN
    for _ in range(9):
        choice.report_step(1, 1, 4.0)  # the host is as slow without a draft
    assert choice.choose(1) == LARGE


def test_what_was_learned_in_a_bad_moment_is_looked_at_again() -> None:
    choice = Choice(SHAPES, COSTS, GAINS, learn=True)
    for shape in SHAPES:
        for _ in range(9):
            slow = 10.0 if shape in (PLAIN, LARGE) else 1.0  # another program had the GPU
            choice.report_step(1, shape.tokens, slow * COSTS[1][shape.tokens])
    assert choice.choose(1) == SMALL
    for _ in range(8 * LOOK_EVERY + 8):
        shape = choice.choose(1)
        choice.report_step(1, shape.tokens, COSTS[1][shape.tokens])
    assert choice.choose(1) == LARGE and choice.cost(1, PLAIN) == COSTS[1][1]


def scheduled(rows: dict[str, int], drafts: dict[str, int]) -> SchedulerOutput:
    made = SchedulerOutput.make_empty()
    made.num_scheduled_tokens, made.total_num_scheduled_tokens = rows, sum(rows.values())
    made.scheduled_spec_decode_tokens = {name: [-1] * count for name, count in drafts.items()}
    return made


def test_a_step_is_known_by_its_requests_and_their_rows() -> None:
    assert decode_step(scheduled({"a": 17, "b": 17}, {"a": 16, "b": 16})) == (2, 17)
    assert decode_step(scheduled({"a": 1}, {})) == (1, 1)
    assert decode_step(scheduled({"a": 17, "b": 9}, {"a": 16, "b": 8})) is None
    assert decode_step(scheduled({"a": 17, "b": 17}, {"a": 16})) is None  # the other reads a prompt
    assert decode_step(scheduled({}, {})) is None


def test_a_step_among_others_like_it_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    choice = Choice(SHAPES, COSTS, GAINS, learn=True)
    load, clock = ByLoad([0, 3], choice), iter([0.0, 1.0, 1.004, 1.008, 1.012, 5.0, 5.004, 5.008])
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    chain, large = scheduled({"a": 4}, {"a": 3}), scheduled({"a": 17}, {"a": 16})
    for output in (large, chain, chain, chain, chain):
        load.scheduled(output)
    assert choice.cost(1, CHAIN) == COSTS[1][4]  # two were timed: too few to know
    for output in (large, chain, chain):
        load.scheduled(output)  # and none whose neighbours are another tree's
    assert choice.cost(1, CHAIN) == COSTS[1][4] and choice.cost(1, LARGE) == COSTS[1][17]
