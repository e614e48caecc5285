"""What a survey of trees comes by, and what is kept of it."""

import itertools
from pathlib import Path

import pytest
from eagle3_sglang.costs import StepCosts
from eagle3_sglang.policy import Survey
from eagle3_sglang.settings import read_settings

from eagle3_serving.errors import InputError
from eagle3_serving.serve.shape import Shape

SHAPES = (Shape(0, 4, 1), Shape(1, 4, 3), Shape(3, 4, 6))


def test_every_tree_has_its_steps_at_every_batch_size() -> None:
    survey = Survey(SHAPES)
    taken = [survey.choose(batch) for batch in [4] * 18 + [1] * 18]
    for steps in (taken[:18], taken[18:]):
        assert {shape: steps.count(shape) for shape in SHAPES} == dict.fromkeys(SHAPES, 6)
        # in a row: the first step of a tree may be spent on the draft's catching up
        assert sum(a != b for a, b in itertools.pairwise(steps)) == 2


def test_a_batch_that_shrinks_takes_what_was_least_seen_there() -> None:
    survey = Survey(SHAPES)
    first = [survey.choose(2) for _ in range(3)]
    survey.choose(1)
    assert survey.choose(2) != first[0]


def test_what_was_passed_through_is_dropped(tmp_path: Path) -> None:
    costs = StepCosts(SHAPES)
    for shape in SHAPES:
        costs.add(4, shape, 1.0 + shape.tokens)
    costs.add(3, SHAPES[0], 99.0)
    costs.keep((4, 1))
    assert costs.measured(4) == set(SHAPES) and not costs.measured(3)
    assert costs.seconds(3, SHAPES[1]) == 3.25  # 9 rows, between 4 and 12
    costs.save(tmp_path / "p.json", {"a": "b"})
    read = StepCosts(SHAPES)
    assert read.read(tmp_path / "p.json", {"a": "b"}) and read.measured(4) == set(SHAPES)


def test_an_unknown_choice_is_named() -> None:
    assert read_settings({"EAGLE3_CHOICE": "survey"}).choice == "survey"
    with pytest.raises(InputError, match="EAGLE3_CHOICE is 'best'"):
        read_settings({"EAGLE3_CHOICE": "best"})
