"""The gates of single requests: what is asked, what is refused, and when drafting stops and goes on."""

import random

import pytest

from eagle3_serving.errors import InputError
from eagle3_serving.serve.gates import LOOK, PATIENCE, TRIES, Asked, Gate, Gates, Lately


@pytest.mark.parametrize("value", ["off", "OFF", False, 0, 0.0, "0", "false"])
def test_off_in_whatever_form_a_client_writes_it(value: object) -> None:
    assert not Asked.of({"eagle3": value}).on


@pytest.mark.parametrize("value", ["on", True, 1, 1.0, "1", "True", None])
def test_on_is_what_the_server_does(value: object) -> None:
    assert Asked.of({"eagle3": value}) == Asked()


def test_other_fields_are_no_business_of_ours() -> None:
    assert Asked.of(None) == Asked.of({"theirs": [1]}) == Asked.of(["eagle3"]) == Asked()


def test_a_bound_of_draft_tokens() -> None:
    assert Asked.of({"eagle3_draft_tokens": 3}) == Asked(True, 3)
    assert not Asked.of({"eagle3_draft_tokens": 0}).on
    assert not Asked.of({"eagle3": "off", "eagle3_draft_tokens": 3}).on


@pytest.mark.parametrize(
    "fields",
    [{"eagle3": "maybe"}, {"eagle3": 2}, {"eagle3": [1]}, *({"eagle3_draft_tokens": x} for x in (-1, 2.5, "3", True))],
)
def test_what_cannot_be_meant_is_told_in_one_line_naming_the_field(fields: dict[str, object]) -> None:
    [name] = fields
    with pytest.raises(ValueError, match=f"^{name} is [^\n]*$"):
        Asked.of(fields)
    assert Asked.heard(fields) == Asked()


def test_the_servers_gates_are_read() -> None:
    assert Gates.read({}) == Gates(None, None, False, None)
    said = {"CONTEXT": "4096", "TEMPERATURE": "0.7", "GRAMMAR": "1", "ACCEPTED": "0"}
    assert Gates.read({f"EAGLE3_GATE_{name}": value for name, value in said.items()}) == Gates(4096, 0.7, True, 0.0)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("CONTEXT", "0"),
        ("CONTEXT", "4k"),
        ("TEMPERATURE", "-1"),
        ("TEMPERATURE", "nan"),
        ("GRAMMAR", "yes"),
        ("ACCEPTED", "inf"),
    ],
)
def test_a_gate_that_cannot_be_read_is_named(name: str, value: str) -> None:
    with pytest.raises(InputError, match=f"EAGLE3_GATE_{name} is"):
        Gates.read({f"EAGLE3_GATE_{name}": value})


def test_a_kind_of_traffic_is_never_drafted() -> None:
    gates = Gates(temperature=0.7, grammar=True)
    kinds = [(Asked(False), 1.0, True), (Asked(), 0.8, True), (Asked(), 0.7, True), (Asked(), 0.7, False)]
    reasons = [Gate(gates, *kind).closed_by(10) for kind in kinds]
    assert reasons == ["request", "temperature", "grammar", None]
    assert Gate(Gates(), Asked(), 2.0, True).closed_by(10**6) is None


def test_what_is_accepted_gates_where_a_plain_step_is_no_slower_for_want_of_a_graph() -> None:
    assert (Gates().settled(True).accepted, Gates().settled(False).accepted) == (0.1, 0.0)
    assert Gates(accepted=0.3).settled(False).accepted == 0.3


def test_past_a_length_nothing_is_drafted() -> None:
    gate = Gate(Gates(context=100), Asked(), 0.0, False)
    assert [gate.closed_by(n) for n in (99, 100, 101)] == [None, "context", "context"]


def drafted(lately: Lately, steps: int, accepted: float, seed: int = 0, lag: int = 0) -> list[bool]:
    """Steps drafted, where a step's drafts yield a token with that chance, which is told `lag` steps later."""
    noise, said, due = random.Random(seed), [], []
    for step in range(steps):
        while due and due[0] <= step:
            due.pop(0)
            lately.verified(int(noise.random() < accepted))
        said.append(lately.pays())
        if said[-1]:
            due.append(step + 1 + lag)
    return said


@pytest.mark.parametrize("lag", [0, 1, 2])
def test_who_gains_nothing_is_drafted_a_few_steps_and_then_rarely(lag: int) -> None:
    said = drafted(Lately(0.1), 1000, 0.0, lag=lag)
    assert sum(said[: TRIES + lag + PATIENCE]) == TRIES + lag
    assert said[TRIES + lag + PATIENCE] and sum(said) <= TRIES + lag + 5 * LOOK


def test_who_gains_is_always_drafted() -> None:
    closed = sum(not all(drafted(Lately(0.1), 300, 0.6, seed)) for seed in range(200))
    assert closed <= 4


def test_a_text_that_turns_good_is_found_again_and_one_that_turns_bad_is_let_go() -> None:
    lately = Lately(0.1)
    assert not drafted(lately, 60, 0.0)[-1]
    later = drafted(lately, 200, 1.0)
    assert later[-50:] == [True] * 50 and later.index(True) <= 2 * PATIENCE
    assert sum(drafted(lately, 400, 0.0)) < 100


def test_no_bound_no_gate() -> None:
    assert all(drafted(Lately(0.0), 500, 0.0))
