"""The choice of tree on a machine of known costs, with a drafter of known worth."""

import itertools
import random

import pytest
from eagle3_sglang.costs import StepCosts
from eagle3_sglang.policy import Cycle, Gains, ShapePolicy

from eagle3_serving.serve.shape import Shape

ZERO, SMALL, MIDDLE, LARGE = SHAPES = (Shape(0, 4, 1), Shape(1, 4, 3), Shape(3, 4, 6), Shape(5, 4, 12))
TOLD = [0.0, 0.6, 1.2, 1.6]


def memory_bound(batch: int, shape: Shape) -> float:
    """A machine on which rows up to 8 cost nothing more, and each further one as much as the first."""
    return 1.0 * max(1.0, batch * shape.tokens / 8) + 0.05 * shape.steps


def run(
    policy: ShapePolicy,
    batch: int,
    steps: int,
    told: list[float],
    cost: float = 1.0,
    truth: float = 1.0,
    launches: float = 0.0,
) -> list[Shape]:
    """`launches`: what a draft costs the host."""
    chosen = []
    for _ in range(steps):
        shape = policy.choose(batch)
        chosen.append(shape)
        policy.costs.add(batch, shape, cost * memory_bound(batch, shape) + launches * shape.drafts)
        if shape.drafts:
            policy.gains.report_expected(
                [gain if s.steps <= shape.steps else 0.0 for s, gain in zip(SHAPES, told, strict=True)], shape
            )
            policy.gains.report_accepted(truth * told[SHAPES.index(shape)], shape)
    return chosen


def best(batch: int, told: list[float]) -> Shape:
    return max(SHAPES, key=lambda shape: batch * (1 + told[SHAPES.index(shape)]) / memory_bound(batch, shape))


@pytest.mark.parametrize("batch", [1, 2, 4, 8, 16])
def test_it_settles_on_the_tree_with_the_best_rate(batch: int) -> None:
    policy = ShapePolicy(SHAPES, StepCosts(SHAPES))
    chosen = run(policy, batch, 60, TOLD)
    # a step or two in 64 look at another
    assert sum(shape != best(batch, TOLD) for shape in chosen[30:]) <= ShapePolicy.look


def test_plain_decoding_measured_in_a_bad_moment_is_measured_again() -> None:
    policy = ShapePolicy(SHAPES, StepCosts(SHAPES))
    weak = [0.0, 0.02, 0.03, 0.04]
    for _ in range(6):  # of a machine that was busy then
        policy.costs.add(1, ZERO, 3.0)
    assert run(policy, 1, 40, weak)[-1].drafts
    assert sum(shape.drafts for shape in run(policy, 1, 200, weak)[140:]) <= ShapePolicy.probe


def test_a_host_that_is_slow_to_launch_drafts_is_found_out_at_once() -> None:
    """As a small target on an H100: graphs of a millisecond, and two more for a draft, which plain decoding has not."""
    costs = StepCosts(SHAPES, sizes=(1,))
    costs.replay({(1, shape): memory_bound(1, shape) for shape in SHAPES})
    chosen = run(ShapePolicy(SHAPES, costs), 1, 60, TOLD, launches=2.0)
    assert not any(shape.drafts for shape in chosen[5:])
    costs = StepCosts(SHAPES, sizes=(1,))
    costs.replay({(1, shape): memory_bound(1, shape) for shape in SHAPES})
    assert all(shape.drafts for shape in run(ShapePolicy(SHAPES, costs), 1, 60, TOLD)[5:])  # where it pays it stays


def test_looking_at_plain_decoding_costs_a_drafting_server_little() -> None:
    policy = ShapePolicy(SHAPES, StepCosts(SHAPES))
    chosen = run(policy, 1, 2000, TOLD)
    assert 0 < sum(not shape.drafts for shape in chosen[50:]) < 0.02 * len(chosen)


def test_one_policy_serves_changing_batches() -> None:
    policy = ShapePolicy(SHAPES, StepCosts(SHAPES))
    for batch in (1, 16, 4, 1, 8, 16):
        run(policy, batch, 40, TOLD)
    for batch in (1, 4, 8, 16):
        assert sum(shape != best(batch, TOLD) for shape in run(policy, batch, 20, TOLD)[2:]) <= 1


def test_a_drafter_that_is_never_right_is_switched_off() -> None:
    policy = ShapePolicy(SHAPES, StepCosts(SHAPES))
    # its confidence says otherwise: what came of it decides
    chosen = run(policy, 1, 300, TOLD, truth=0.0)
    assert sum(shape.drafts for shape in chosen[150:]) <= ShapePolicy.probe


def test_after_long_idleness_it_tries_again_and_finds_that_texts_changed() -> None:
    policy = ShapePolicy(SHAPES, StepCosts(SHAPES))
    nothing = [0.0, 0.01, 0.01, 0.01]
    assert set(run(policy, 1, 150, nothing)[100:]) == {ZERO}
    later = run(policy, 1, 2000, TOLD)
    assert sum(shape != best(1, TOLD) for shape in later[-60:]) <= ShapePolicy.look
    assert later.index(next(shape for shape in later if shape.drafts)) > 50  # and does not try all the time


def test_trying_costs_a_plain_decoding_server_little() -> None:
    policy = ShapePolicy(SHAPES, StepCosts(SHAPES))
    chosen = run(policy, 16, 2000, [0.0, 0.1, 0.15, 0.2])
    drafting = sum(shape.drafts for shape in chosen)
    assert 0 < drafting < 0.02 * len(chosen)


def test_a_lucky_stretch_of_text_is_no_reason_to_draft() -> None:
    """A few steps of one request, where drafting pays, between many of a larger batch, where it does so in lucky
    stretches only: what counts there is the mean over all of them."""
    policy, draw = ShapePolicy(SHAPES, StepCosts(SHAPES)), random.Random(0)
    wasted = taken = 0
    for _stretch in range(200):
        lucky = [0.0, *(2.4 if draw.random() < 0.3 else 0.1,) * 3]  # 0.8 in the mean
        for batch, steps, cost in ((1, 8, 1.2), (2, 12, 2.0)):  # of a step that drafts; one that does not takes 1
            for _ in range(steps):
                shape = policy.choose(batch)
                policy.costs.add(batch, shape, cost if shape.drafts else 1.0)
                if shape.drafts:
                    told = [gain if s.steps <= shape.steps else 0.0 for s, gain in zip(SHAPES, lucky, strict=True)]
                    policy.gains.report_expected(told, shape, batch)
                    policy.gains.report_accepted(lucky[-1], shape)
                taken += batch == 2
                wasted += batch == 2 and shape.drafts
    assert wasted < 0.015 * taken


@pytest.mark.parametrize(("batch", "slower", "slow"), [(1, 1.3, {MIDDLE}), (2, 1.5, {SMALL, MIDDLE, LARGE})])
def test_trees_measured_in_a_bad_moment_are_measured_again(batch: int, slower: float, slow: set[Shape]) -> None:
    """While another tree serves, and while none does."""
    policy = ShapePolicy(SHAPES, StepCosts(SHAPES))
    for shape in SHAPES:
        for _ in range(6):
            policy.costs.add(batch, shape, (slower if shape in slow else 1.0) * memory_bound(batch, shape))
    assert best(batch, TOLD) not in run(policy, batch, 60, TOLD)[10:]
    run(policy, batch, 600, TOLD)
    chosen = run(policy, batch, 60, TOLD)
    assert sum(shape != best(batch, TOLD) for shape in chosen) <= ShapePolicy.look


def test_no_larger_tree_is_tried_after_a_hopeless_one() -> None:
    policy = ShapePolicy(SHAPES, StepCosts(SHAPES))
    chosen = run(policy, 32, 100, [0.0, 0.1, 0.15, 0.2])
    assert LARGE not in chosen


def test_gains_of_deeper_trees_move_with_those_seen() -> None:
    gains = Gains(SHAPES)
    gains.report_expected(TOLD, LARGE)
    for _ in range(60):
        gains.report_expected([0.0, 0.3, 0.0, 0.0], SMALL)
    assert gains.expected[SMALL] == pytest.approx(0.3, rel=0.05)
    assert gains.expected[LARGE] == pytest.approx(0.8, rel=0.1)
    assert gains.of(ZERO) == 0.0


def test_unknown_is_not_zero() -> None:
    gains = Gains(SHAPES)
    assert gains.of(MIDDLE) is None
    assert ShapePolicy(SHAPES, StepCosts(SHAPES)).rate(4, MIDDLE) is None


def test_cycle_takes_each_in_turn() -> None:
    cycle = Cycle(SHAPES)
    taken = [cycle.choose(batch) for batch in itertools.repeat(3, 8)]
    assert set(taken[:4]) == set(SHAPES) and taken[:4] == taken[4:]


CHAINS = (Shape(0, 1, 1), Shape.chain(1), Shape.chain(2), Shape.chain(3))


def test_what_came_of_a_chain_tells_of_the_shorter_ones() -> None:
    gains = Gains(CHAINS)
    for _ in range(40):
        gains.report_chain([3, 1, 0, 2], CHAINS[-1])
    assert [gains.of(chain) for chain in CHAINS] == pytest.approx([0.0, 0.75, 1.25, 1.5], rel=0.02)
    gains.report_chain([], CHAINS[-1])
    before = dict(gains.expected)
    gains.report_chain([0, 0], CHAINS[0])  # plain decoding tells nothing
    assert gains.expected == before


@pytest.mark.parametrize(("batch", "chance"), [(1, 0.9), (1, 0.3), (8, 0.9), (32, 0.5), (64, 0.02)])
def test_the_load_chooses_among_chains(batch: int, chance: float) -> None:
    """Each next token of a chain is accepted by the same chance; graphs were replayed at start."""
    draw = random.Random(7)

    def cost(chain: Shape) -> float:
        return 1.0 * max(1.0, batch * chain.tokens / 96) + 0.1 * chain.steps

    costs = StepCosts(CHAINS, sizes=(1, 2, 4, 8, 16, 32, 64))
    costs.replay({(size, chain): 0.8 * cost(chain) for size in costs.sizes for chain in CHAINS})
    policy = ShapePolicy(CHAINS, costs)
    taken = []
    for _ in range(400):
        chain = policy.choose(batch)
        taken.append(chain)
        costs.add(batch, chain, cost(chain))
        accepted = [next((n for n in range(chain.steps) if draw.random() > chance), chain.steps) for _ in range(batch)]
        policy.gains.report_chain(accepted, chain)

    def worth(chain: Shape) -> float:
        return (1 + sum(chance**n for n in range(1, chain.steps + 1))) / cost(chain)

    served = max(set(taken[200:]), key=taken[200:].count)
    assert worth(served) >= 0.97 * max(map(worth, CHAINS))
