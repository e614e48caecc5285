"""Mode auto decides by both sides' own record: whatever a forecast says, what came of it counts."""

import pytest
import torch

from eagle3_serving.engine.draft import TreeShape
from eagle3_serving.engine.options import Step
from eagle3_serving.engine.policy import AutoPolicy, Experience
from eagle3_serving.tree import Candidates
from eagle3_serving.tree.budget import CostModel, Curve

PASS, ROW, DRAFT = 0.05, 0.002, 0.004
LINE = Curve({1: ((1.0, PASS), (101.0, PASS + 100 * ROW))})
TAKEN_IN = Curve({1: ((1.0, DRAFT), (1001.0, DRAFT + 1000 * 0.001))})
COSTS = CostModel(LINE, Curve({1: ((1.0, DRAFT), (100.0, DRAFT))}), TAKEN_IN, {})
LEFT = 1000


def likely(batch: int) -> Candidates:
    """Two likely children under every root."""
    return Candidates(
        torch.tensor([[5, 6]]).repeat(batch, 1),
        torch.full((batch, 2), -1),
        torch.tensor([[0.7, 0.2]]).log().repeat(batch, 1),
    )


def run(policy: AutoPolicy, steps: int, batch: int, tokens: int, slow: float = 1.0) -> list[bool]:
    """Steps of a machine whose drafting steps yield `tokens` a request and take `slow` times what the profile says."""
    drafted = []
    for _ in range(steps):
        drafted.append(policy.drafts(batch, batch, LEFT))
        if not drafted[-1]:
            policy.observe_plain(COSTS.target.at(batch, batch))
            continue
        tree = policy.select(likely(batch))
        nodes = int((tree.scores_BN > -torch.inf).sum())
        verify_s = slow * COSTS.target.at(batch, batch + nodes)
        done = [Step(tuple(range(tokens)), accepted=tokens - 1, nodes=nodes // batch)] * batch
        policy.observe(batch, slow * DRAFT, verify_s, tree, done)
    return drafted


def auto(experience: Experience | None = None) -> AutoPolicy:
    return AutoPolicy(TreeShape(8, 2, 2), COSTS, experience or Experience())


def test_plain_decoding_is_measured_before_and_among_the_drafts() -> None:
    drafted = run(auto(), 200, batch=2, tokens=2)
    assert not any(drafted[:3])
    assert sum(drafted) > 180
    assert not all(drafted[10:])


@pytest.mark.parametrize("tokens, slow", [(1, 1.0), (2, 3.0)])
def test_drafts_that_yield_too_little_or_take_too_long_end(tokens: int, slow: float) -> None:
    drafted = run(auto(), 400, batch=2, tokens=tokens, slow=slow)
    assert any(drafted)  # it was promising
    assert sum(drafted[40:]) <= 40  # and is tried again now and then


def test_what_was_seen_at_one_batch_size_says_nothing_of_another() -> None:
    known = Experience()
    run(auto(known), 100, batch=8, tokens=1)
    assert sum(run(auto(known), 100, batch=1, tokens=2)) > 80


def test_a_failed_try_makes_the_next_one_rarer() -> None:
    known = Experience()
    run(auto(known), 3000, batch=2, tokens=1)
    assert known.at(2).patience > 400


def test_the_next_request_is_given_a_chance() -> None:
    """Ten requests that the drafter knows well, then one that it does not, then one that it knows again."""
    policy = auto()
    for _ in range(10):
        policy.admitted(1, 1)
        run(policy, 30, batch=1, tokens=2)
    policy.admitted(1, 1)
    assert not any(run(policy, 40, batch=1, tokens=1)[30:])
    policy.admitted(1, 1)
    assert sum(run(policy, 30, batch=1, tokens=2)) > 25


def test_a_long_prompt_is_not_taken_in_for_a_few_tokens() -> None:
    policy = auto()
    run(policy, 60, batch=1, tokens=2)
    assert policy.drafts(1, waiting=1, left=10)
    assert not policy.drafts(1, waiting=900, left=10)
    assert policy.drafts(1, waiting=900, left=2000)
