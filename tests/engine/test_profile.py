"""Costs are measured through the engine itself, kept, and read again."""

from pathlib import Path

import pytest
from tiny import tiny_drafter, tiny_target

from eagle3_serving.engine import DecodeOptions, EmbeddedEngine
from eagle3_serving.engine.profile import costs_for, measure_costs
from eagle3_serving.errors import InputError


def test_every_curve_is_measured_at_every_batch() -> None:
    costs = measure_costs(tiny_target(0), tiny_drafter(0), (1, 3), context=20, repeats=1, progress=False)
    for curve in (costs.target, costs.step, costs.absorb):
        assert set(curve.points) == {1, 3}
        assert all(seconds > 0 for points in curve.points.values() for _, seconds in points)
    assert [rows for rows, _ in costs.target.points[3]][:3] == [3, 6, 9]
    assert costs.about["target_layers"] == 3


def test_costs_are_kept_and_serve_auto(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EAGLE3_CACHE", str(tmp_path))
    engine = EmbeddedEngine(tiny_target(0), tiny_drafter(0))
    engine.costs = costs_for(engine, tmp_path / "target", 2)
    assert len(list((tmp_path / "profiles").iterdir())) == 1
    assert costs_for(engine, tmp_path / "target", 2) == engine.costs
    said = engine.generate_many([[1, 2], [3]], DecodeOptions(10, "auto"), 2)
    assert [len(one.token_ids) for one in said] == [10, 10]


def test_a_profile_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "profile.json").write_text("{}")
    engine = EmbeddedEngine(tiny_target(0), tiny_drafter(0))
    with pytest.raises(InputError, match=r"profile\.json: not a profile"):
        costs_for(engine, tmp_path, 1, tmp_path / "profile.json")
    with pytest.raises(InputError, match="needs the machine's costs"):
        engine.generate([1], DecodeOptions(4, "auto"))
