"""What a GPU would meet first, met here: every tensor on the device it belongs to, and nothing inside a graph that a
capture forbids (a read that waits for the device, a copy from the host).

`test_other_device.py` runs this file in a process of its own: a device, once registered, stays for the whole process."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pretend_device import NAME, Crossings, pretend_device

from benchmarks.gpu import answers, correctness, curve, draft_step, training, tree_attention
from benchmarks.gpu.settings import Settings
from benchmarks.gpu.sink import Sink
from benchmarks.gpu.timing import Captured
from eagle3_serving.engine import EmbeddedEngine

SETTINGS = Settings(device=f"{NAME}:0", tiny=True, batches=(2,), tokens=4)


@pytest.fixture(autouse=True)
def unwritten_memory_holds_nan() -> Iterator[None]:
    """What reads memory that nobody wrote is seen at once, not on the day that it held a NaN."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def device() -> Iterator[type[Crossings]]:
    with pretend_device() as crossings:
        yield crossings


@pytest.fixture
def captures(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Reads and uploads of every replay of what would be a graph, the first one (a warm-up) left out."""
    seen: list[tuple[int, int]] = []
    replay, warm = Captured.replay, set()

    def counted(self: Captured[Any]) -> Any:
        before = Crossings.reads, Crossings.uploads
        out = replay(self)
        if id(self) in warm:
            seen.append((Crossings.reads - before[0], Crossings.uploads - before[1]))
        warm.add(id(self))
        return out

    monkeypatch.setattr(Captured, "replay", counted)
    return seen


def test_the_device_refuses_a_tensor_of_another() -> None:
    with pretend_device() as crossings:
        there = torch.ones(3, device=NAME)
        assert str(there.device) == f"{NAME}:0"
        assert (there + 1).tolist() == [2.0] * 3 and crossings.reads == 1
        with pytest.raises(AssertionError, match="of the CPU"):
            there + torch.ones(3)
        with pytest.raises(AssertionError, match="of the CPU"):
            torch.where(there > 0, torch.arange(3), 0)
        assert torch.tensor([1, 2], device=NAME).sum().item() == 3
        assert crossings.uploads == 1
    assert torch.tensor([1.0]).sum() == 1


def test_every_check_of_correctness_holds(device: object) -> None:
    for name, check in correctness.checks(SETTINGS):
        if name != "tests marked gpu":
            row = check(SETTINGS)
            assert row["ok"], (name, row)


def test_tree_attention_is_right_and_can_be_captured(
    device: object, captures: list[tuple[int, int]], tmp_path: Path
) -> None:
    sink = Sink(tmp_path / "attention.jsonl", {})
    tree_attention.run(SETTINGS, sink, tmp_path)
    assert all(row["ok"] for row in sink.rows if "ok" in row)
    assert len(captures) > 10 and set(captures) == {(0, 0)}


def test_curve_and_draft_step_can_be_captured(
    device: object, captures: list[tuple[int, int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes = {name: shape for name, shape in curve.SHAPES.items() if name != "tree-60"}
    for module in (curve, draft_step):
        monkeypatch.setattr(module, "SHAPES", shapes)
    monkeypatch.setattr(curve, "SETTINGS", ("plain", *shapes))
    sink = Sink(tmp_path / "curve.jsonl", {})
    curve.run(SETTINGS, sink, tmp_path)
    assert {row["setting"] for row in sink.rows if "setting" in row} == {"plain", *shapes}
    draft_step.run(SETTINGS, Sink(tmp_path / "draft.jsonl", {}), tmp_path)
    assert len(captures) > 20 and set(captures) == {(0, 0)}


def test_answers_and_training(device: object, captures: list[tuple[int, int]], tmp_path: Path) -> None:
    target = training._toy_target(SETTINGS, tmp_path)
    engine = EmbeddedEngine.load(target, None, torch.float32, SETTINGS.device)
    prompts = [(str(n), [1 + n, 2, 3]) for n in range(24)]
    file = tmp_path / "answers.jsonl"
    size = {"seconds": 60.0, "max_tokens": 5, "batch": 8, "passes": 1, "seed": 0}
    assert answers.generate(engine, prompts, file, **size)["answers"] == 24  # type: ignore[arg-type]
    assert captures and set(captures) == {(0, 0)}
    job = training._job(replace(SETTINGS, draft_vocab=64), target, [file])
    assert training._speed(job, tmp_path)["tokens_per_second"] > 0
    assert (tmp_path / "speed" / "drafter" / "model.safetensors").is_file()
