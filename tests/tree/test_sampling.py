"""Sampling from a tree keeps the target's law exactly: the joint law of three tokens, drawn a million times."""

import pytest
import sampling_world
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sampling_world import Shape, Verdict, exact_joint, joint_counts, judge, make_world, reference_law
from torch import Tensor
from tree_strategies import parents_batches

import eagle3_serving.tree.sampling as sampling
from eagle3_serving.tree import (
    Noise,
    SamplingParams,
    accept_greedy,
    accept_sampled,
    draw_children,
    sample,
    target_law,
    tree_layout,
    with_root,
)

DRAWS, BATCH = 1_000_000, 250_000
FILTERS: list[dict[str, float]] = [
    {"temperature": 1.0},
    {"temperature": 0.7},
    {"temperature": 0.7, "top_p": 0.8},
    {"temperature": 1.0, "min_p": 0.1},
    {"temperature": 1.0, "top_k": 3},
]
SHAPES = [
    Shape((3, 2), drawn=False),
    Shape((1, 1), drawn=True),
    Shape((3, 2), drawn=True),
    Shape((3, 3), drawn=True, stairs=True),
    Shape((3, 2), drawn=False, coupled=True),
]


def verdict(shape: Shape, draws: int = DRAWS, **filters: float) -> Verdict:
    world = make_world()
    generator = torch.Generator().manual_seed(7)
    batch = min(BATCH, draws)
    params = SamplingParams.uniform(batch, **filters)  # type: ignore[arg-type]
    counts = sum(joint_counts(world, params, shape, generator) for _ in range(draws // batch))
    assert isinstance(counts, Tensor) and int(counts.sum()) == draws
    return judge(counts, exact_joint(world, **filters))


@pytest.mark.parametrize("filters", FILTERS, ids=str)
@pytest.mark.parametrize(
    "shape", SHAPES, ids=lambda s: f"{s.widths}-{'drawn' if s.drawn else 'coupled' if s.coupled else 'top'}-{s.stairs}"
)
def test_three_tokens_follow_the_exact_joint_law(shape: Shape, filters: dict[str, float]) -> None:
    found = verdict(shape, **filters)
    assert found.lawful, found


@pytest.mark.parametrize(
    "wrong",
    [
        Shape((3, 2), True, prune=True),
        Shape((3, 2), True, resort=True),
        Shape((3, 2), True, pretend=True),
        Shape((3, 2), False, coupled=True, redraw=True),
    ],
)
def test_trees_that_hang_on_what_was_drawn_fail_the_same_test(wrong: Shape) -> None:
    assert not verdict(wrong, draws=BATCH, temperature=1.0).lawful


@pytest.mark.parametrize("fault", ["stale", "bonus", "argmax", "keep"])
def test_wrong_samplers_fail_the_same_test(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    reject, drawn = sampling._reject, sampling._draw

    def bonus_from_the_whole_law(law: Tensor, draft: Tensor, *rest: Tensor) -> tuple[Tensor, Tensor]:
        return reject(law, draft, *rest)[0], law

    if fault == "stale":  # the law stays what it was after a rejection
        monkeypatch.setattr(sampling, "_residual", lambda law, draft: law)
    elif fault == "bonus":
        monkeypatch.setattr(sampling, "_reject", bonus_from_the_whole_law)
    elif fault == "argmax":
        monkeypatch.setattr(sampling, "_draw", lambda law, uniform: law.argmax(-1))
    else:  # a child may be drawn again
        monkeypatch.setattr(sampling, "_without", lambda draft, token: draft)
    assert not verdict(Shape((3, 2), drawn=True), draws=BATCH, temperature=1.0).lawful
    monkeypatch.setattr(sampling, "_draw", drawn)


@settings(deadline=None, max_examples=60)
@given(parents_batches(), st.integers(0, 2**31))
def test_temperature_zero_in_a_mixed_batch_is_greedy_acceptance(parents: list[list[int]], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    layout = tree_layout(with_root(torch.tensor(parents)))
    batch, rows = layout.parents_BN.shape
    # siblings of one token would stand for one context, whose logits are one and the same
    tokens_BR = torch.arange(rows).expand(batch, rows)
    is_child_BRV = layout.parents_BN[:, None, :] == torch.arange(rows)[:, None]
    logits_BRV = torch.randn(batch, rows, rows, generator=generator) + 2.0 * is_child_BRV
    cold_B = torch.arange(batch) % 2 == 0
    params = SamplingParams(torch.where(cold_B, 0.0, 1.0))
    depth = rows - 1
    found = accept_sampled(tokens_BR, layout, logits_BRV, params, depth, generator)
    greedy = accept_greedy(tokens_BR, layout, logits_BRV.argmax(-1), depth)
    for mine, theirs in zip(found, greedy, strict=True):
        assert torch.equal(mine[cold_B], theirs[cold_B])
    for request in range(batch):
        path = found.rows_BD[request, : int(found.count_B[request])].tolist()
        assert [int(layout.parents_BN[request, row]) for row in path] == [0, *path][: len(path)]
        assert bool((found.rows_BD[request, len(path) :] == -1).all())


@settings(deadline=None, max_examples=80)
@given(
    st.lists(st.floats(-8, 8, width=32), min_size=2, max_size=12, unique=True),
    st.sampled_from([0.0, 0.5, 1.0, 2.0]),
    st.integers(0, 6),
    st.sampled_from([0.1, 0.6, 0.95, 1.0]),
    st.sampled_from([0.0, 0.05, 0.5]),
)
def test_the_law_is_the_slow_references(
    logits: list[float], temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    row = torch.tensor([logits])
    law = target_law(row, SamplingParams.uniform(1, temperature, top_k, top_p, min_p))
    want = torch.from_numpy(reference_law(row[0].numpy(), temperature, top_k, top_p, min_p))
    # a token at the very edge of a filter may fall on either side by rounding
    if int(((law[0] > 0) != (want > 0)).sum()) == 0:
        assert torch.allclose(law[0].double(), want, atol=1e-5)
    else:
        assert float((law[0].double() - want).abs().sum()) < 2 * float(want[want > 0].min()) + 1e-4


def test_logits_that_are_not_numbers_leave_a_law() -> None:
    broken = torch.tensor([[float("nan"), 1.0, 2.0], [float("nan")] * 3, [float("inf"), 0.0, 0.0]])
    law = target_law(broken, SamplingParams.uniform(3, 1.0, top_k=2, top_p=0.9))
    assert torch.allclose(law.sum(-1), torch.ones(3))
    assert float(law[0, 0]) == 0.0
    drawn = sample(broken, SamplingParams.uniform(3), Noise(torch.arange(3), torch.arange(3)))
    assert drawn[1:].tolist() == [0, 0]


def test_draws_follow_their_law_in_order_and_never_repeat() -> None:
    logits = torch.tensor([0.0, 1.0, 2.0, -1.0]).expand(200_000, 1, 4)
    draw = draw_children(logits, 2, torch.ones(200_000), torch.Generator().manual_seed(0))
    first, second = draw.tokens_BKC[:, 0].unbind(1)
    assert bool((first != second).all())
    law = logits[0, 0].softmax(-1)
    seen = torch.bincount(first, minlength=4) / len(first)
    assert torch.allclose(seen, law, atol=0.005)
    after = second[first == 2]
    rest = law * (torch.arange(4) != 2)
    assert torch.allclose(torch.bincount(after, minlength=4) / len(after), rest / rest.sum(), atol=0.01)


def test_it_compiles_whole() -> None:
    world = sampling_world.make_world()
    tree = sampling_world.draft(world, torch.tensor([[2, 4]] * 3), SHAPES[2], torch.Generator().manual_seed(0))
    logits_BRV = world.target_VVV[tree.before_BR, tree.tokens_BR]
    params = SamplingParams.uniform(3, 0.0)

    def accept(tokens_BR: Tensor, logits_BRV: Tensor) -> object:
        return accept_sampled(tokens_BR, tree.layout, logits_BRV, params, 2, None, tree.proposals, 3)

    compiled = torch.compile(accept, fullgraph=True, backend="aot_eager")
    for mine, theirs in zip(compiled(tree.tokens_BR, logits_BRV), accept(tree.tokens_BR, logits_BRV), strict=True):  # type: ignore[call-overload]
        assert torch.equal(mine, theirs)
