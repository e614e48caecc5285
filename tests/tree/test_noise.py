"""Noise by seed, position and token: Gumbel's law, nothing in common between neighbours, the same draw for all who look."""

import math

import pytest
import torch

from benchmarks.gpu.statistics import chi_square
from eagle3_serving.tree import Noise, SamplingParams, coupled_children, gumbel, sample, target_law, top_children

IDS = torch.arange(4000)


@pytest.mark.parametrize("wide", [True, False])
def test_it_is_gumbels(wide: bool) -> None:
    seed_X = torch.randint(-(2**62), 2**62, (50,), generator=torch.Generator().manual_seed(0))
    noise_XV = gumbel(seed_X, torch.arange(50) * 977, IDS, wide)
    assert noise_XV.dtype == (torch.float64 if wide else torch.float32) and bool(noise_XV.isfinite().all())
    below_XV = torch.exp(-torch.exp(-noise_XV.double()))  # uniform, if it is
    cells = torch.bincount((below_XV.flatten() * 64).long().clamp(max=63), minlength=64)
    assert chi_square(cells, torch.full((64,), 1 / 64, dtype=torch.float64)) > 1e-3


@pytest.mark.parametrize("wide", [True, False])
def test_neighbours_have_nothing_in_common(wide: bool) -> None:
    """Seeds, positions and tokens one apart, and seeds whose halves differ."""
    seed_X = torch.tensor([0, 1, -1, 1 << 32, 0, 0, 12345])
    position_X = torch.tensor([0, 0, 0, 0, 1, 2, 0])
    noise_XV = gumbel(seed_X, position_X, IDS, wide).double()
    rows_XV = torch.cat([noise_XV, noise_XV[:1].roll(1, 1)])
    correlation_XX = torch.corrcoef(rows_XV) - torch.eye(len(rows_XV))
    assert float(correlation_XX.abs().max()) < 5 / math.sqrt(len(IDS))


def test_a_tokens_noise_is_the_same_in_any_company() -> None:
    seed_X, position_X = torch.tensor([3, -9]), torch.tensor([5, 6])
    again = gumbel(seed_X, position_X, IDS[10:20], False)
    assert torch.equal(again, gumbel(seed_X, position_X, IDS, False)[:, 10:20])
    assert torch.equal(gumbel(seed_X[:1], position_X[:1], IDS), gumbel(seed_X, position_X, IDS)[:1])


@pytest.mark.parametrize("along", ["seeds", "positions"])
def test_tokens_drawn_with_it_follow_the_law(along: str) -> None:
    many = 40_000
    logits_V = 1.5 * torch.randn(12, generator=torch.Generator().manual_seed(1))
    params = SamplingParams.uniform(many, 0.8, top_p=0.95)
    count, still = torch.arange(many), torch.full((many,), 11)
    noise = Noise(count, still) if along == "seeds" else Noise(still, count)
    drawn_B = sample(logits_V.expand(many, -1), params, noise)
    law_V = target_law(logits_V[None], SamplingParams.uniform(1, 0.8, top_p=0.95))[0].double()
    assert chi_square(torch.bincount(drawn_B, minlength=12), law_V) > 1e-3
    colder_V = target_law(logits_V[None], SamplingParams.uniform(1, 0.7, top_p=0.95))[0].double()
    assert chi_square(torch.bincount(drawn_B, minlength=12), colder_V) < 1e-6


def test_a_drafter_of_the_targets_own_law_knows_the_draw() -> None:
    logits_BV = torch.randn(300, 1000, generator=torch.Generator().manual_seed(2))
    noise = Noise(torch.arange(300), torch.arange(300) % 7)
    temperature_B = torch.full((300,), 0.7)
    drawn_B = sample(logits_BV, SamplingParams(temperature_B), noise)
    children = coupled_children(logits_BV[:, None], 3, temperature_B, noise.gumbel(0, torch.arange(1000)))
    hit_BC = children.tokens_BKC[:, 0] == drawn_B[:, None]
    assert float(hit_BC[:, 0].float().mean()) > 0.8 and float(hit_BC.any(1).float().mean()) > 0.97
    assert float((top_children(logits_BV[:, None], 3).tokens_BKC[:, 0, 0] == drawn_B).float().mean()) < 0.2
    # of half of the vocabulary, in another order: the draw, where it is there
    ids_V = torch.randperm(1000, generator=torch.Generator().manual_seed(3))[:500]
    some = coupled_children(logits_BV[:, None, ids_V], 3, temperature_B, noise.gumbel(0, ids_V))
    known_B = (ids_V == drawn_B[:, None]).any(1)
    assert float((ids_V[some.tokens_BKC[:, 0]] == drawn_B[:, None]).any(1)[known_B].float().mean()) > 0.97


def test_greedy_requests_and_broken_logits_are_as_without_noise() -> None:
    logits_BKV = torch.randn(3, 2, 50, generator=torch.Generator().manual_seed(4))
    noise_BV = gumbel(torch.arange(3), torch.arange(3), torch.arange(50))
    mixed = coupled_children(logits_BKV, 5, torch.tensor([0.0, 1.0, 1e-6]), noise_BV)
    greedy = top_children(logits_BKV, 5)
    for got, wanted in zip(mixed, greedy, strict=True):
        assert torch.equal(got[::2], wanted[::2]) and not torch.equal(got[1], wanted[1])
    logits_BKV[1, 0, 7] = torch.nan
    broken = coupled_children(logits_BKV, 5, torch.ones(3), noise_BV)
    assert bool((broken.log_chance_BKC[1, 0] == -torch.inf).all())
    assert bool((broken.log_chance_BKC[[0, 2]] > -torch.inf).all())
