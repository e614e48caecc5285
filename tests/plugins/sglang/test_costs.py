from collections.abc import Callable
from pathlib import Path

import pytest
from eagle3_sglang.costs import StepCosts, bucket, measured_with
from eagle3_sglang.replays import replay_all, sizes_to_time

from eagle3_serving.serve.shape import Shape

SHAPES = (Shape(0, 4, 1), Shape(3, 4, 6))


@pytest.fixture
def costs() -> StepCosts:
    made = StepCosts(SHAPES)
    for batch in (1, 4):
        for shape in SHAPES:
            for noise in (9.0, 1.0, 1.1, 5.0):  # the first is cold
                made.add(batch, shape, noise * 0.01 * (1 + batch * shape.tokens))
    return made


def test_the_median_counts(costs: StepCosts) -> None:
    assert costs.seconds(4, SHAPES[1]) == pytest.approx(1.1 * 0.25)


def test_a_batch_size_not_met_lies_between_those_that_were(costs: StepCosts) -> None:
    low, between, high = (costs.seconds(batch, SHAPES[0]) for batch in (1, 2, 4))
    assert low is not None and between is not None and high is not None
    assert low < between < high


def test_one_tree_met_at_a_batch_size_says_nothing_of_the_others() -> None:
    """As where a batch passed through 15 on its way from 16 to none, and the largest tree was tried then."""
    made = StepCosts(SHAPES)
    for batch in (8, 16):
        for shape in SHAPES:
            made.add(batch, shape, batch * shape.tokens / 100)
    before = {batch: made.seconds(batch, SHAPES[0]) for batch in range(8, 17)}
    made.add(15, SHAPES[-1], 15 * SHAPES[-1].tokens / 100)
    assert {batch: made.seconds(batch, SHAPES[0]) for batch in range(8, 17)} == before
    assert made.seconds(15, SHAPES[-1]) == pytest.approx(15 * SHAPES[-1].tokens / 100)


def test_like_batch_sizes_count_together(costs: StepCosts) -> None:
    assert [bucket(batch) for batch in (1, 2, 3, 4, 5, 8, 9)] == [0, 1, 2, 2, 3, 3, 4]
    assert costs.steps(3, SHAPES[0]) == costs.steps(4, SHAPES[0]) == 3
    assert costs.steps(8, SHAPES[0]) == 0


def add_all(costs: StepCosts, batch: int, shape: Shape, seconds: float, steps: int) -> None:
    for _ in range(steps):
        costs.add(batch, shape, seconds)


@pytest.fixture
def steady() -> StepCosts:
    made = StepCosts(SHAPES)
    for shape in SHAPES:
        add_all(made, 4, shape, 0.1 * shape.tokens, 9)
    return made


def test_two_far_better_steps_among_others_are_news_and_one_is_not(steady: StepCosts) -> None:
    for steps, expected in ((1, 0.6), (2, 0.3)):
        add_all(steady, 4, SHAPES[0], 0.1, 5)
        add_all(steady, 4, SHAPES[1], 0.3, steps)
        add_all(steady, 4, SHAPES[0], 0.1, 5)
        assert steady.seconds(4, SHAPES[1]) == pytest.approx(expected)


def test_a_machine_that_slows_down_slows_all_trees(steady: StepCosts) -> None:
    """What is measured in a slow moment is taken as it would be at the pace before."""
    new = 2, SHAPES[0]
    for slower in (1.0, 1.6, 1.0, 1.6):
        add_all(steady, 4, SHAPES[0], slower * 0.1, 9)
        add_all(steady, *new, slower * 0.07, 2)
        add_all(steady, 4, SHAPES[0], slower * 0.1, 9)
        assert steady.seconds(4, SHAPES[0]) == pytest.approx(0.1)
        assert steady.seconds(*new) == pytest.approx(0.07)


def test_a_survey_takes_each_step_as_it_was() -> None:
    costs = StepCosts(SHAPES, paced=False)
    for slower in (1.0, 1.0, 1.6):
        add_all(costs, 4, SHAPES[0], slower * 0.05, 5)
    add_all(costs, 4, SHAPES[0], 1.6 * 0.05, 5)
    assert costs.seconds(4, SHAPES[0]) == pytest.approx(1.6 * 0.05)


def test_what_is_kept_is_at_the_usual_pace(steady: StepCosts, tmp_path: Path) -> None:
    add_all(steady, 4, SHAPES[0], 0.15, 600)
    steady.save(tmp_path / "p.json", {})
    again = StepCosts(SHAPES)
    assert again.read(tmp_path / "p.json", {})
    assert again.seconds(4, SHAPES[0]) == pytest.approx(0.15)


def test_nothing_is_known_at_first() -> None:
    assert StepCosts(SHAPES).seconds(1, SHAPES[0]) is None


def test_a_profile_is_taken_over_whole(costs: StepCosts, tmp_path: Path) -> None:
    path = tmp_path / "deep" / "profile.json"
    costs.save(path, {"device": "here"})
    again = StepCosts(SHAPES)
    assert again.read(path, {"device": "here"})
    assert again.seconds(2, SHAPES[1]) == pytest.approx(costs.seconds(2, SHAPES[1]))
    assert again.steps(4, SHAPES[1]) >= 3  # and is not measured again
    assert list(path.parent.iterdir()) == [path]


def test_a_profile_of_something_else_is_left_alone(costs: StepCosts, tmp_path: Path) -> None:
    costs.save(tmp_path / "p.json", {"device": "there"})
    again = StepCosts(SHAPES)
    assert not again.read(tmp_path / "p.json", {"device": "here"})
    assert again.seconds(1, SHAPES[0]) is None


@pytest.mark.parametrize(
    "text", ["", "{}", '{"about": {}, "seconds": [[1, 2]]}', '{"about": {}, "seconds": [["x", [0,4,1], 1]]}']
)
def test_what_is_no_profile_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text(text)
    with pytest.raises(ValueError, match=r"p\.json is not a profile"):
        StepCosts(SHAPES).read(tmp_path / "p.json", {})


# ---- where CUDA graphs run

SIZES = (1, 2, 4, 8, 16, 32)


@pytest.fixture
def graphs() -> StepCosts:
    made = StepCosts(SHAPES, sizes=SIZES)
    made.replay({(size, shape): 0.01 + 0.001 * size * shape.tokens for size in (1, 4, 8, 32) for shape in SHAPES})
    return made


def test_a_batch_costs_what_the_next_larger_captured_one_does(graphs: StepCosts) -> None:
    for shape in SHAPES:
        steps = [graphs.seconds(batch, shape) for batch in range(1, 33)]
        assert steps[4] == steps[7] == pytest.approx(0.01 + 0.008 * shape.tokens)  # 5 to 8 are a stair
        assert steps[3] < steps[4]  # type: ignore[operator]
        # 16 was captured and not replayed: it lies between 8 and 32, at its own size; and 9 is on its stair
        assert steps[8] == steps[15] == pytest.approx(0.01 + 0.016 * shape.tokens)
    # past the largest no graph runs
    assert graphs.seconds(64, SHAPES[0]) == pytest.approx(2 * 0.042)


def test_a_tree_replayed_needs_no_try_and_what_is_served_corrects_it(graphs: StepCosts) -> None:
    nothing, tree = SHAPES
    assert all(graphs.steps(batch, shape) >= 4 for batch in (1, 7, 32) for shape in SHAPES)
    add_all(graphs, 5, tree, 0.1, 6)
    assert graphs.seconds(8, tree) == pytest.approx(0.1)  # as it was served
    # at another size the graphs' own seconds, and what serving added at the nearest
    added = 0.1 - (0.01 + 0.008 * 6)
    assert graphs.seconds(4, tree) == pytest.approx(0.01 + 0.004 * 6 + added)
    add_all(graphs, 5, nothing, 0.02, 6)
    assert graphs.seconds(4, nothing) == pytest.approx(0.01 + 0.004 + 0.02 - 0.018)
    assert graphs.seconds(4, tree) == pytest.approx(0.01 + 0.004 * 6 + added)  # a draft's own, not plain decoding's


def test_graphs_are_kept_in_the_profile(graphs: StepCosts, tmp_path: Path) -> None:
    add_all(graphs, 8, SHAPES[1], 0.1, 6)
    graphs.save(tmp_path / "p.json", {"device": "H100"})
    again = StepCosts(SHAPES, sizes=SIZES)
    assert not again.graphs_known
    assert again.read(tmp_path / "p.json", {"device": "H100"}) and again.graphs_known
    for batch in (1, 5, 8, 16, 32):
        for shape in SHAPES:
            assert again.seconds(batch, shape) == pytest.approx(graphs.seconds(batch, shape))
    told = StepCosts(SHAPES)  # as a tool reads it, without graphs of its own
    assert told.read(tmp_path / "p.json", {"device": "H100"}) and told.sizes == SIZES
    assert told.seconds(5, SHAPES[1]) == told.seconds(8, SHAPES[1]) and told.measured(7) == {SHAPES[1]}
    other = StepCosts(SHAPES, sizes=SIZES)
    assert not other.read(tmp_path / "p.json", {"device": "B200"}) and not other.graphs_known
    assert measured_with(tmp_path / "p.json") == {"device": "H100"}
    assert measured_with(tmp_path / "none.json") == {}


def test_each_graph_is_replayed_and_a_tree_is_the_sum_of_its_own() -> None:
    played: list[int] = []

    def graph(seconds: float, sizes: tuple[int, ...]) -> dict[int, Callable[[], float]]:
        return {size: lambda size=size: played.append(size) or seconds * size for size in sizes}  # type: ignore[misc]

    nothing, tree = SHAPES
    found = replay_all(
        {nothing: [graph(1.0, SIZES)], tree: [graph(0.5, SIZES), graph(1.0, SIZES[:-1])]},
        sizes_to_time(SIZES),
        lambda work: work(),
    )
    assert found[4, nothing] == 4.0 and found[4, tree] == 6.0
    assert (32, tree) not in found and found[32, nothing] == 32.0  # a graph that was not captured there
    assert played.count(1) == 3 * 4
    assert replay_all({tree: []}, SIZES, lambda work: work()) == {}


def test_sizes_to_time() -> None:
    assert sizes_to_time([*range(1, 9), *range(12, 65, 4), 80]) == [1, 2, 4, 8, 16, 32, 64, 80]
    assert sizes_to_time([3, 7]) == [3, 7]
    assert sizes_to_time([]) == []
