"""Gates of single requests where a step has one tree for all."""

from types import SimpleNamespace
from typing import Any

import pytest
from eagle3_sglang.gates import BatchGates, within

from eagle3_serving.serve.gates import TRIES, Gates
from eagle3_serving.serve.shape import Shape

NOTHING, SHAPES = Shape.nothing(4), (Shape.nothing(4), Shape(1, 4, 3), Shape(3, 4, 6), Shape(5, 4, 12))


def request(seqlen: int = 10, temperature: float = 1.0, top_k: int = 1, grammar: Any = None, **fields: Any) -> Any:
    params = SimpleNamespace(temperature=temperature, top_k=top_k, custom_params=fields or None)
    return SimpleNamespace(sampling_params=params, seqlen=seqlen, grammar=grammar)


def test_a_batch_is_drafted_for_as_long_as_one_of_it_is() -> None:
    gates = BatchGates(Gates())
    off, on = request(eagle3="off"), request()
    assert (gates.most([off, off]), gates.most([off, on]), gates.most([on])) == (0, None, None)
    assert gates.take() == {("request", "own"): 2, ("request", "kept"): 1}
    assert not gates.take()


def test_the_batch_has_the_largest_bound_of_its_requests() -> None:
    gates = BatchGates(Gates())
    few, more = request(eagle3_draft_tokens=2), request(eagle3_draft_tokens=5)
    assert gates.most([few, more]) == 5 and gates.most([few]) == 2 and gates.most([few, request()]) is None


@pytest.mark.parametrize(("most", "tokens"), [(None, 12), (11, 12), (10, 6), (2, 3), (1, 1), (0, 1)])
def test_the_tree_fits_the_bound(most: int | None, tokens: int) -> None:
    assert within(SHAPES[-1], most, SHAPES, NOTHING).tokens == tokens


def test_the_likeliest_token_is_sampled_at_no_temperature() -> None:
    gates = BatchGates(Gates(temperature=0.5))
    assert gates.most([request(temperature=1.0, top_k=1)]) is None
    assert gates.most([request(temperature=0.6, top_k=50)]) == 0


def test_grammars_and_long_texts() -> None:
    assert BatchGates(Gates(grammar=True)).most([request(grammar=object())]) == 0
    assert BatchGates(Gates(context=100)).most([request(seqlen=100)]) == 0


def test_who_gains_nothing_is_let_go_and_one_that_gains_beside_it_opens_it_again() -> None:
    gates, bad, good = BatchGates(Gates(accepted=0.1)), request(), request()
    for _ in range(TRIES):
        assert gates.most([bad]) is None
        gates.verified([bad], [0])
    assert gates.most([bad]) == 0
    assert gates.most([bad, good]) is None
    for _ in range(4):
        gates.verified([bad, good], [1, 1])
    assert gates.most([bad]) is None
