"""The budget: costs are read off straight lines, and the number of nodes is the best one by trying all."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eagle3_serving.tree.budget import CostModel, Curve, best_nodes, forecast

LINE = Curve({1: ((1.0, 0.10), (11.0, 0.20)), 4: ((4.0, 0.40), (24.0, 0.80))})


def test_costs_are_read_off_straight_lines() -> None:
    assert LINE.at(1, 6) == pytest.approx(0.15)
    assert LINE.at(1, 21) == pytest.approx(0.30)  # the last slope goes on
    assert LINE.at(4, 14) == pytest.approx(0.60)
    assert LINE.at(2, 11) == pytest.approx(0.20 + (0.54 - 0.20) / 3)
    assert LINE.at(64, 24) == pytest.approx(0.80)  # the largest batch measured stands for larger ones


def test_nodes_that_make_the_pass_cheaper_are_taken() -> None:
    odd = Curve({1: ((1.0, 0.10), (2.0, 0.20), (3.0, 0.11))})
    assert best_nodes(torch.tensor([0.3, 0.01]), odd, 1, 10.0, 2) == 2
    assert best_nodes(torch.tensor([0.3]), odd, 1, 10.0, 2) == 0


@settings(deadline=None)
@given(
    st.lists(st.floats(0.0, 1.0, width=32), max_size=20),
    st.floats(0.01, 0.5),
    st.floats(0.0, 0.1),
    st.floats(0.1, 50.0),
    st.integers(0, 20),
)
def test_the_best_number_of_nodes_is_the_best_of_all(
    survival: list[float], base: float, row: float, price: float, limit: int
) -> None:
    curve = Curve({2: ((2.0, base), (102.0, base + 100 * row))})
    nodes = best_nodes(torch.tensor(survival), curve, 2, price, limit)
    ranked = sorted(survival, reverse=True)

    def worth(n: int) -> float:
        return sum(ranked[:n]) - price * (curve.at(2, 2 + n) - curve.at(2, 2))

    assert 0 <= nodes <= min(limit, len(survival))
    assert worth(nodes) >= max(worth(n) for n in range(min(limit, len(survival)) + 1)) - 1e-5


def costs(target: Curve) -> CostModel:
    return CostModel(target, LINE, LINE, {"machine": "made up"})


def test_a_forecast_says_zero_where_rows_are_dear_and_many_where_they_are_free() -> None:
    survival = torch.tensor([0.9, 0.5, 0.2] * 4)
    dear = forecast(costs(Curve({1: ((1.0, 1.0), (2.0, 3.0))})), 1, survival, 4, 0.05)
    assert dear.drafting < dear.plain == dear.price
    free = forecast(costs(Curve({1: ((1.0, 1.0), (9.0, 1.001))})), 1, survival, 4, 0.05)
    assert free.nodes == pytest.approx(3.0)
    assert free.price == free.drafting == pytest.approx((1 + 1.6) / (1.0003 + 0.05), rel=1e-3)


def test_a_profile_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    costs(LINE).save(tmp_path / "deep" / "profile.json")
    assert CostModel.read(tmp_path / "deep" / "profile.json") == costs(LINE)


@pytest.mark.parametrize(
    "key, value", [("target", {}), ("step", {"1": []}), ("absorb", {"1": [[1, -1]]}), ("about", 3)]
)
def test_a_damaged_profile_is_named(tmp_path: Path, key: str, value: object) -> None:
    path = tmp_path / "profile.json"
    path.write_text(json.dumps({**costs(LINE).to_json(), key: value}))
    with pytest.raises(ValueError, match=r"profile\.json: not a profile of costs"):
        CostModel.read(path)
