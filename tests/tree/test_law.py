"""The edges of sampling: ties, broken logits, used-up draft laws, equal siblings, mixed batches, the device's pace."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sampling_world import START, Shape, draft, exact_joint, joint_counts, judge, make_world
from torch import Tensor
from tree_strategies import parents_batches, path_to

import eagle3_serving.tree.sampling as sampling
from eagle3_serving.tree import (
    PADDING,
    Acceptance,
    Noise,
    Proposals,
    SamplingParams,
    TreeLayout,
    accept_greedy,
    accept_sampled,
    coupled_children,
    draw_children,
    gumbel,
    sample,
    target_law,
    tree_layout,
    with_root,
)

MIXED = SamplingParams(
    torch.tensor([1.0, 0.0, 0.7, 1.0, 2.0, 1e-6]),
    torch.tensor([0, 3, 0, 2, 0, 0]),
    torch.tensor([1.0, 0.5, 0.6, 1.0, 0.9, 1.0]),
    torch.tensor([0.0, 0.2, 0.0, 0.0, 0.1, 0.3]),
)


def follows_the_tree(accepted: Acceptance, layout: TreeLayout) -> None:
    for request, rows in enumerate(accepted.rows_BD.tolist()):
        path = rows[: int(accepted.count_B[request])]
        parents = layout.parents_BN[request].tolist()
        assert [parents[row] for row in path] == [0, *path][: len(path)]
        assert set(rows[len(path) :]) <= {-1}


def test_each_row_of_a_mixed_batch_has_the_law_of_its_own_filters() -> None:
    logits_BV = torch.randn(6, 50, generator=torch.Generator().manual_seed(0))
    law_BV = target_law(logits_BV, MIXED)
    for row, logits_V in enumerate(logits_BV):
        temperature, top_k, top_p, min_p = (float(part[row]) for part in MIXED if part is not None)
        alone = SamplingParams.uniform(1, temperature, int(top_k), top_p, min_p)
        assert torch.equal(law_BV[row], target_law(logits_V[None], alone)[0])


def test_of_equal_logits_the_lower_ids_are_kept() -> None:
    tied = torch.zeros(1, 7)
    assert target_law(tied, SamplingParams.uniform(1, 0.0)).tolist() == [[1.0] + [0.0] * 6]
    assert target_law(tied, SamplingParams.uniform(1, top_k=2)).tolist() == [[0.5, 0.5] + [0.0] * 5]
    assert target_law(tied, SamplingParams.uniform(1, top_p=0.1)).tolist() == [[1.0] + [0.0] * 6]
    assert torch.allclose(target_law(tied, SamplingParams.uniform(1, min_p=1.0)), torch.full((1, 7), 1 / 7))
    # no wish is so strict that the best goes too
    assert target_law(torch.arange(3.0)[None], SamplingParams.uniform(1, min_p=2.0)).tolist() == [[0.0, 0.0, 1.0]]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_a_row_without_a_number_and_a_vast_one_leave_a_law(temperature: float, value: float) -> None:
    logits_BV = torch.tensor([[value] * 4, [3e38, -3e38, value, 0.0]])
    law_BV = target_law(logits_BV, SamplingParams.uniform(2, temperature, 3, 0.9, 0.1))
    assert law_BV.tolist() == [[1.0, 0.0, 0.0, 0.0]] * 2
    draw = draw_children(logits_BV[:, None], 9, torch.full((2,), temperature))
    assert draw.tokens_BKC.sort(-1).values.tolist() == [[[0, 1, 2, 3]]] * 2
    assert bool((draw.probs_BKV.sum(-1) == 1).all())


def test_a_token_of_probability_zero_is_not_drawn_at_any_end() -> None:
    law_BV = torch.tensor([[0.0, 0.5, 0.0, 0.5, 0.0]]).expand(4, 5)
    uniform_B = torch.tensor([0.0, 0.5 - 2**-53, 0.5, 1 - 2**-53], dtype=torch.float64)
    assert sampling._draw(law_BV, uniform_B).tolist() == [1, 1, 3, 3]


def test_children_of_a_greedy_request_are_the_best_in_order() -> None:
    logits_BKV = torch.randn(2, 3, 20, generator=torch.Generator().manual_seed(0))
    draw = draw_children(logits_BKV, 4, torch.tensor([0.0, 1.0]))
    assert torch.equal(draw.tokens_BKC[0], logits_BKV[0].topk(4).indices)
    assert torch.equal(draw.probs_BKV[0].argmax(-1), draw.tokens_BKC[0, :, 0])
    assert bool((draw.probs_BKV[0].amax(-1) == 1).all())


@pytest.mark.parametrize("known", [1, 2])
def test_siblings_past_the_mass_of_their_law_keep_the_exact_law(known: int) -> None:
    world = make_world()
    world.draft_VVD[..., known:] = -torch.inf
    params, generator = SamplingParams.uniform(100_000), torch.Generator().manual_seed(5)
    found = judge(joint_counts(world, params, Shape((3, 2), drawn=True), generator), exact_joint(world))
    assert found.lawful, found


@settings(max_examples=60)
@given(parents_batches(), st.integers(1, 3), st.integers(0, 2**31))
def test_siblings_of_one_token_are_walked_together(batch: list[list[int]], vocab: int, seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    layout = tree_layout(with_root(torch.tensor(batch)))
    rows = layout.parents_BN.shape[1]
    tokens_BR = torch.randint(vocab, (len(batch), rows), generator=random)
    # one context, one row of logits: siblings of the same token share theirs
    contexts: dict[tuple[int, ...], Tensor] = {}
    logits_BRV = torch.zeros(len(batch), rows, vocab)
    for request, parents in enumerate(layout.parents_BN.tolist()):
        for row in range(rows):
            context = (request, *(int(tokens_BR[request, at]) for at in path_to(parents, row)[1:]))
            fresh = torch.randint(3, (vocab,), generator=random).float()
            logits_BRV[request, row] = contexts.setdefault(context if parents[row] != PADDING else (-row,), fresh)
    temperature_B = (torch.arange(len(batch)) % 2).float()
    found = accept_sampled(tokens_BR, layout, logits_BRV, SamplingParams(temperature_B), rows - 1, random)
    greedy = accept_greedy(tokens_BR, layout, logits_BRV.argmax(-1), rows - 1)
    for mine, theirs in zip(found, greedy, strict=True):
        assert torch.equal(mine[::2], theirs[::2])
    follows_the_tree(found, layout)


@settings(max_examples=60)
@given(parents_batches(), st.integers(0, 2**31))
def test_temperature_zero_is_greedy_whatever_the_children_were_drawn_from(batch: list[list[int]], seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    layout = tree_layout(with_root(torch.tensor(batch)))
    rows = layout.parents_BN.shape[1]
    is_child_BRR = layout.parents_BN[:, None] == torch.arange(rows)[:, None]
    logits_BRV = torch.randn(len(batch), rows, rows, generator=random) + 2.0 * is_child_BRR
    # neither the root's token nor one of a slot without a node is a token at all
    nowhere_BR = (layout.parents_BN == PADDING) | (torch.arange(rows) == 0)
    tokens_BR = torch.arange(rows).expand(len(batch), rows).masked_fill(nowhere_BR, 10**9)
    laws_BQV = (
        torch.rand(len(batch), 4, rows, generator=random).pow(4) * torch.tensor([1.0, 1.0, 0.0, torch.nan])[:, None]
    )
    row_BR = torch.randint(-1, 4, (len(batch), rows), generator=random)
    proposals = Proposals(laws_BQV / laws_BQV.sum(-1, keepdim=True), row_BR, torch.randperm(rows, generator=random))
    temperature_B = (torch.arange(len(batch)) % 2).float()
    found = accept_sampled(tokens_BR, layout, logits_BRV, SamplingParams(temperature_B), rows - 1, random, proposals)
    greedy = accept_greedy(tokens_BR, layout, logits_BRV.argmax(-1), rows - 1)
    for mine, theirs in zip(found, greedy, strict=True):
        assert torch.equal(mine[::2], theirs[::2])
    follows_the_tree(found, layout)


def calls(device: str) -> dict[str, tuple[Callable[..., Any], tuple[Any, ...]]]:
    """Each function and arguments that leave it much to draw."""
    random = torch.Generator().manual_seed(3)
    world = make_world()
    trees = [draft(world, torch.tensor([START] * 6), Shape((3, 2), drawn), random) for drawn in (False, True)]
    layout = TreeLayout(*(part.to(device) for part in trees[0].layout))
    params = SamplingParams(*(part.to(device) for part in MIXED if part is not None))
    logits_BV = torch.randn(6, 40, generator=random).to(device)
    noise = Noise(torch.arange(6, device=device), torch.arange(3, 9, device=device))

    def accept(tree: int) -> tuple[Any, ...]:
        tokens_BR, before_BR, _, proposals = trees[tree]
        logits_BRV = world.target_VVV[before_BR, tokens_BR].to(device)
        moved = None if proposals is None else Proposals(*(part.to(device) for part in proposals))
        return tokens_BR.to(device), layout, logits_BRV, params, 2, None, moved, 3

    return {
        "target_law": (target_law, (logits_BV, params)),
        "sample": (sample, (logits_BV, params, noise)),
        "draw_children": (draw_children, (logits_BV[:, None], 3, params.temperature_B)),
        "coupled_children": (
            coupled_children,
            (logits_BV[:, None], 3, params.temperature_B, noise.gumbel(2, torch.arange(40, device=device))),
        ),
        "gumbel": (gumbel, (*noise, torch.arange(40, device=device))),
        "accept_sampled, coupled": (accept_sampled, (*accept(0), noise)),
        "accept_sampled, top": (accept_sampled, accept(0)),
        "accept_sampled, drawn": (accept_sampled, accept(1)),
    }


def leaves(result: Any) -> list[Tensor]:
    return [result] if isinstance(result, Tensor) else list(result)


@pytest.mark.parametrize("name", calls("cpu"))
def test_traced_whole_it_draws_the_same(name: str) -> None:
    torch.compiler.reset()
    function, arguments = calls("cpu")[name]
    traced = torch.compile(function, fullgraph=True, backend="aot_eager")
    for seed in (0, 1):
        torch.manual_seed(seed)
        want = leaves(function(*arguments))
        torch.manual_seed(seed)
        for got, wanted in zip(leaves(traced(*arguments)), want, strict=True):
            assert torch.equal(got, wanted)


@pytest.mark.gpu
@pytest.mark.parametrize("name", calls("cpu"))
def test_on_a_gpu_nothing_waits_for_the_device(name: str) -> None:
    function, arguments = calls("cuda")[name]
    function(*arguments)
    torch.cuda.set_sync_debug_mode("error")
    try:
        results = leaves(function(*arguments))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(result.is_cuda for result in results)
    if name == "target_law":
        here, there = calls("cpu")[name]
        assert torch.allclose(results[0].cpu(), here(*there), atol=1e-6)
