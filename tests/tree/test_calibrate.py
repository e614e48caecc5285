"""Calibration: the fit finds what made the data, ranking stays a tree's, and a damaged file is named."""

import json
from pathlib import Path

import pytest
import torch

from eagle3_serving.tree import Children, Lookup
from eagle3_serving.tree.calibrate import Calibration, by_rank, fit, logit, lookup_prior

KNOWN = Calibration(bias=(0.5, -0.5), slope=(1.2, 0.8), rank=(0.0, -0.7), lookup_chance=((0.1, 0.2), (0.3, 0.4)))


def test_the_fit_finds_the_parameters_that_made_the_data() -> None:
    draws = torch.Generator().manual_seed(0)
    count = 200_000
    log_p = (torch.rand(count, generator=draws) * 0.98 + 0.01).log()
    depth = torch.randint(1, 3, (count,), generator=draws)
    rank = torch.randint(0, 2, (count,), generator=draws)
    score = torch.tensor(KNOWN.bias)[depth - 1] + torch.tensor(KNOWN.slope)[depth - 1] * logit(log_p)
    chance = (score + torch.tensor(KNOWN.rank)[rank]).sigmoid()
    label = (torch.rand(count, generator=draws) < chance).float()
    bias, slope, ranks = fit(log_p, depth, rank, label, 2, 2)
    assert bias == pytest.approx(KNOWN.bias, abs=0.05)
    assert slope == pytest.approx(KNOWN.slope, abs=0.05)
    assert ranks == pytest.approx(KNOWN.rank, abs=0.05)


def test_chances_are_log_probabilities_and_nothing_stays_nothing() -> None:
    log_p = torch.tensor([[[-0.01, -5.0, -torch.inf], [0.0, -40.0, -50.0]]])
    made = KNOWN.apply(Children(torch.arange(6).view(1, 2, 3), log_p), depth=5)
    assert bool((made.log_chance_BKC <= 0).all())
    assert float(made.log_chance_BKC[0, 0, 2]) == -torch.inf
    expected = (-0.5 + 0.8 * logit(torch.tensor(-0.01))).sigmoid().log()
    assert float(made.log_chance_BKC[0, 0, 0]) == pytest.approx(float(expected), abs=1e-5)


def test_the_lookup_table_is_read_by_match_and_depth() -> None:
    found = Lookup(torch.zeros(3, 3, dtype=torch.long), torch.tensor([3, 3, 3]), torch.tensor([1, 2, 9]))
    want = torch.tensor([[0.1, 0.2, 0.2], [0.3, 0.4, 0.4], [0.3, 0.4, 0.4]])
    assert torch.allclose(KNOWN.lookup(found).exp(), want)
    assert bool((lookup_prior(found)[0] < lookup_prior(found)[2]).all())


def test_ranks_alone_decide_for_drawn_children() -> None:
    one, other = by_rank(torch.tensor([[[4, 9, 2]]])), by_rank(torch.tensor([[[7, 1, 5]]]))
    assert torch.equal(one.log_chance_BKC, other.log_chance_BKC)
    assert float(one.log_chance_BKC.exp().sum()) < 1.0
    assert bool((one.log_chance_BKC.diff() < 0).all())


def test_it_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    KNOWN.save(tmp_path / "calibration.json")
    assert Calibration.beside(tmp_path) == KNOWN
    assert Calibration.beside(tmp_path / "elsewhere") is None


@pytest.mark.parametrize(
    "damage",
    [
        "{",
        "[]",
        "{}",
        json.dumps({"bias": [], "slope": [], "rank": [0], "lookup_chance": [], "rows": 1}),
        json.dumps({"bias": [0], "slope": [-1], "rank": [0], "lookup_chance": [], "rows": 1}),
        '{"bias": [NaN], "slope": [1], "rank": [0], "lookup_chance": [], "rows": 1}',
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "calibration.json"
    path.write_text(damage)
    with pytest.raises(ValueError, match=r"calibration\.json is not a calibration"):
        Calibration.beside(tmp_path)
