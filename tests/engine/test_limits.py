"""Where a generation ends, what it counts, and what it refuses."""

import pytest
import torch
from tiny import tiny_drafter, tiny_engine, tiny_target

from eagle3_serving.engine import DecodeOptions, EmbeddedEngine, Sampling
from eagle3_serving.errors import InputError

TREE = {"mode": "tree", "nodes": 150, "depth": 2, "top_k": 12}


@pytest.mark.parametrize("limit", range(1, 8))
def test_stops_exactly_at_the_limit(limit: int) -> None:
    engine = tiny_engine(1)
    speculative = engine.generate([1, 2], DecodeOptions(max_new_tokens=limit, **TREE))  # type: ignore[arg-type]
    assert len(speculative.token_ids) == limit
    assert limit - 1 - speculative.steps <= sum(speculative.accepted) <= limit - 1


def test_stops_exactly_at_the_end_token() -> None:
    engine = tiny_engine(1)
    free = engine.generate([1, 2], DecodeOptions(max_new_tokens=40, mode="plain")).token_ids
    for eos in set(free):
        cut = free[: free.index(eos) + 1]
        for options in (
            DecodeOptions(max_new_tokens=40, mode="plain", eos_ids=[eos]),
            DecodeOptions(max_new_tokens=40, mode="chain", k=4, eos_ids=[eos]),
            DecodeOptions(max_new_tokens=40, eos_ids=[eos], **TREE),  # type: ignore[arg-type]
        ):
            generation = engine.generate([1, 2], options)
            assert generation.token_ids == cut
            assert sum(generation.accepted) <= len(cut) - 1


def test_stream_yields_a_target_pass_at_a_time() -> None:
    engine = tiny_engine(1)
    options = DecodeOptions(max_new_tokens=30, **TREE)  # type: ignore[arg-type]
    steps = list(engine.stream([1, 2], options))
    generation = engine.generate([1, 2], options)
    assert steps[0].accepted is None and len(steps[0].token_ids) == 1
    assert sum((step.token_ids for step in steps), ()) == generation.token_ids
    assert generation.accepted_length == pytest.approx(29 / generation.steps)
    assert sum(generation.accepted_by_position) == sum(generation.accepted)


@pytest.mark.parametrize(
    "drafter, said",
    [
        ({"hidden": 32}, "hidden size 32"),
        ({"vocab": 16}, "vocabulary of 16"),
        ({"aux_layers": (2, 5, 9)}, "layers [2, 5, 9]"),
    ],
)
def test_a_drafter_for_another_target_is_refused_in_one_line(drafter: dict[str, object], said: str) -> None:
    with pytest.raises(InputError) as error:
        EmbeddedEngine(tiny_target(0), tiny_drafter(0, **drafter))  # type: ignore[arg-type]
    assert "for another target" in str(error.value)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_a_drafter_of_another_dtype_is_refused() -> None:
    with pytest.raises(InputError, match="load both alike"):
        EmbeddedEngine(tiny_target(0), tiny_drafter(0).to(torch.bfloat16))


@pytest.mark.parametrize(
    "prompt, options, said",
    [
        ([], DecodeOptions(), "no token"),
        ([99], DecodeOptions(), "outside 0..11"),
        ([1] * 500, DecodeOptions(), "exceed"),
    ],
)
def test_a_prompt_that_cannot_be_served(prompt: list[int], options: DecodeOptions, said: str) -> None:
    with pytest.raises(InputError, match=said):
        tiny_engine(0).stream(prompt, options)


def test_speculation_needs_a_drafter() -> None:
    with pytest.raises(InputError, match="needs a drafter"):
        EmbeddedEngine(tiny_target(0)).generate([1])


@pytest.mark.parametrize(
    "wrong, said",
    [
        ({"mode": "trees"}, "plain, chain, tree, auto"),
        ({"nodes": 0}, "nodes is 0"),
        ({"mode": "auto", "proposals": "drawn"}, "proposals coupled or top"),
        ({"mode": "chain", "lookup": True}, "mode tree or auto"),
        ({"proposals": "best"}, "known are coupled, top, drawn"),
    ],
)
def test_options_that_cannot_be_served(wrong: dict[str, object], said: str) -> None:
    with pytest.raises(InputError, match=said):
        DecodeOptions(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "wrong, said",
    [
        ({"temperature": -1.0}, "temperature is -1"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"top_k": -1}, "top_k is -1"),
        ({"top_p": 0.0}, "top_p is 0"),
        ({"min_p": 1.5}, "min_p is 1.5"),
    ],
)
def test_sampling_out_of_range(wrong: dict[str, float], said: str) -> None:
    with pytest.raises(InputError, match=said):
        Sampling(**wrong)  # type: ignore[arg-type]
