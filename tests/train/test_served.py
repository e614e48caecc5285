"""Served acceptance chooses: what is measured is what an engine yields, the best is kept, and a resumed run keeps the same."""

import itertools
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from eagle3_serving.drafter import Drafter
from eagle3_serving.engine import EmbeddedEngine
from eagle3_serving.train.best import Watch
from eagle3_serving.train.data import Answer
from eagle3_serving.train.features import FeatureBatch, FeatureSource
from eagle3_serving.train.options import TrainOptions
from eagle3_serving.train.plot import plot_training
from eagle3_serving.train.replies import greedy_answers
from eagle3_serving.train.run import Trainer
from eagle3_serving.train.served import Recording, Served, ServedMeasure, record
from eagle3_serving.tree.calibrate import Calibration

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "engine"))
from tiny import VOCAB, tiny_drafter, tiny_target

TREE = (3, 3, 8)


@pytest.fixture(scope="module")
def answers() -> list[Answer]:
    """The target's own greedy answers."""
    generator = torch.Generator().manual_seed(1)
    prompts = torch.randint(0, VOCAB, (32, 5), generator=generator).tolist()
    return greedy_answers(EmbeddedEngine(tiny_target(1)), prompts, 14, 16, progress=False)


def trainer(answers: list[Answer], directory: Path, fresh: bool = True, rate: float = 4e-4) -> Trainer:
    directory.mkdir(exist_ok=True)
    target, drafter = tiny_target(1), tiny_drafter(1)
    drafter.embed_tokens.weight.data.copy_(target.embedding)
    source = FeatureSource(target, drafter.config.aux_layers, directory / "features")
    # measured by a target of its own, which stays as it is
    recording = record(target, {"one": answers[:4], "other": answers[4:8]}, 60, 12)
    served = ServedMeasure(target, drafter.config.aux_layers, recording, TREE, source)
    options = TrainOptions(
        tokens=1000,
        tokens_per_batch=60,
        ttt_steps=2,
        warmup=2,
        closed_form_batches=3,
        save_every=4,
        log_every=1,
        measure_every=150,
        learning_rate=rate,
        fusion_learning_rate=rate,
    )
    return Trainer(drafter, target, answers[8:], answers[:8], directory, options, fresh, source, served)


def log(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / "log.jsonl").read_text().splitlines()]


def of_time_apart(directory: Path) -> list[dict[str, Any]]:
    return [
        {**{k: v for k, v in r["served"].items() if k != "share_of_time"}, "tokens": r["tokens"]}
        for r in log(directory)
        if "served" in r
    ]


def test_a_stopped_run_keeps_the_same_best(
    answers: list[Answer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = trainer(answers, tmp_path / "whole")
    whole.run()
    for stop in (4, 9, 10):  # two of them between saves
        stopped = trainer(answers, tmp_path / "stopped")
        step = stopped.train_step

        def until(*args: Any, run: Trainer = stopped, step: Any = step, stop: int = stop) -> int:
            run.stopping = run.step == stop - 1
            return int(step(*args))

        monkeypatch.setattr(stopped, "train_step", until)
        stopped.run()
    resumed = trainer(answers, tmp_path / "stopped")
    resumed.run()
    assert whole.best is not None and resumed.best is not None and whole.step == resumed.step
    assert resumed.best.served == whole.best.served and resumed.best.tokens == whole.best.tokens
    for ours, theirs in zip(resumed.best.weights, whole.best.weights, strict=True):
        assert torch.equal(ours, theirs)
    for ours, theirs in zip(resumed.average, whole.average, strict=True):
        assert torch.equal(ours, theirs)
    records = of_time_apart(tmp_path / "whole")
    assert of_time_apart(tmp_path / "stopped") == records
    assert len(records) > 4 and records[-1]["tokens"] == whole.seen_tokens
    assert plot_training(tmp_path / "whole" / "log.jsonl", tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_measuring_changes_no_weight(answers: list[Answer], tmp_path: Path) -> None:
    watched, alone = trainer(answers, tmp_path / "watched"), trainer(answers, tmp_path / "alone")
    alone.served = None
    for one in (watched, alone):
        one.run()
    assert alone.best is None and watched.best is not None
    for ours, theirs in zip(watched.average, alone.average, strict=True):
        assert torch.equal(ours, theirs)


def test_what_got_worse_is_not_kept(answers: list[Answer], tmp_path: Path) -> None:
    """Gone on from a drafter at a rate that ruins it: the one from before comes out."""
    first = trainer(answers, tmp_path / "first", rate=5e-3)
    first.run()
    drafter = first.finished()
    ruined = trainer(answers, tmp_path / "ruined", fresh=False, rate=3.0)
    ruined.drafter.load_state_dict(drafter.state_dict())
    ruined.run()
    assert ruined.best is not None and ruined.best.tokens == 0
    aux = torch.randn(2, 5, 48)
    torch.testing.assert_close(ruined.finished().fuse(aux), drafter.fuse(aux), atol=1e-4, rtol=1e-4)
    last = next(r for r in reversed(of_time_apart(tmp_path / "ruined")))
    assert not last["best"] and last["tree"] < ruined.best.served.mean("tree")


def test_what_is_measured_is_what_an_engine_yields(answers: list[Answer]) -> None:
    target, drafter = tiny_target(1), tiny_drafter(1)
    source = FeatureSource(target, drafter.config.aux_layers, None, bf16=False)
    recording = Recording({"one": answers[:3], "other": answers[3:9]}, answers[9:20])
    measure = ServedMeasure(target, drafter.config.aux_layers, recording, TREE, source)
    found = measure(drafter)
    engine = EmbeddedEngine(target, drafter, found.calibration)
    for mode, options in measure.settings.items():
        for name, family in recording.measured.items():
            said = engine.generate_many([a.prompt_ids for a in family], options, 4)
            assert [one.token_ids for one in said] == [a.response_ids for a in family]
            passes = sum(one.passes - 1 for one in said)
            length = sum(len(one.token_ids) - 1 for one in said) / passes
            assert found.accepted_length[mode][name] == pytest.approx(length, abs=1e-3)
    assert found.mean("tree") >= found.mean("chain") > 1.0


def test_what_a_run_is_for_counts_for_a_half() -> None:
    """Seen on mathematics with two kinds of general answers: each alike, their noise kept the drafter from before."""
    flat = Calibration((0.0,), (1.0,), (0.0,))

    def served(own: float, one: float, other: float, *names: str) -> Served:
        families = {"math-steps": own, "code": one, "chat": other}
        return Served({"chain": families, "tree": families}, flat, names)

    before, after = (4.06, 2.55, 2.57), (4.5, 2.45, 2.3)
    assert served(*after).mean("tree") < served(*before).mean("tree") + 0.03
    assert served(*after, "math-steps").score > served(*before, "math-steps").score + 0.1
    assert served(*before, "math-steps").mean("chain") == pytest.approx((4.06 + (2.55 + 2.57) / 2) / 2)
    every = served(*before, "math-steps", "code", "chat")
    assert every.mean("chain") == pytest.approx(served(*before).mean("chain")), "all are its own: each alike"
    assert Served.of_state(served(*before, "math-steps").state()) == served(*before, "math-steps")


def test_the_target_is_asked_once(answers: list[Answer]) -> None:
    target, drafter = tiny_target(1), tiny_drafter(1)
    source, asked = FeatureSource(target, drafter.config.aux_layers, None, bf16=False), list[int]()

    def extract(some: Sequence[Answer]) -> FeatureBatch:
        asked.append(len(some))
        return source(some)

    recording = Recording({"one": answers[:3]}, answers[3:9])
    measure = ServedMeasure(target, drafter.config.aux_layers, recording, TREE, extract)
    first = measure(drafter)
    before = len(asked)
    assert measure(drafter) == first and len(asked) == before


def test_a_recording_keeps_to_its_budget_and_to_its_file(answers: list[Answer], tmp_path: Path) -> None:
    families = {"one": answers[:10], "other": answers[10:14], "single": answers[14:15]}
    recording = record(tiny_target(1), families, budget=108, max_tokens=12)
    assert {name: len(family) for name, family in recording.measured.items()} == {"one": 3, "other": 2, "single": 1}
    assert recording.tokens <= 108 and len(recording.calibrated) == 3 + 2
    prompts = {a.prompt_ids for family in recording.measured.values() for a in family}
    assert not prompts & {a.prompt_ids for a in recording.calibrated}, "not fitted on what is measured"
    recording.save(tmp_path / "served.json")
    assert Recording.read(tmp_path / "served.json") == recording
    (tmp_path / "served.json").write_text('{"measured": ')
    assert Recording.read(tmp_path / "served.json") is None


def test_measurements_are_due_by_tokens_alone() -> None:
    watch, seen = Watch(), [0, 90, 140, 310, 320, 610]
    assert [watch.due(a, b, 100) for a, b in itertools.pairwise(seen)] == [False, True, True, False, True]
    assert not any(watch.due(a, b, 0) for a, b in itertools.pairwise(seen))


def test_a_drafter_as_served_reads_raw_features(answers: list[Answer], tmp_path: Path) -> None:
    run = trainer(answers, tmp_path / "run")
    run.start()
    raw = run.features(0).aux_BLF
    served: Drafter = run.drafted(run.average, torch.bfloat16)
    torch.testing.assert_close(served.fuse(raw), run.drafter.fuse(raw / run.scale_F), atol=2e-2, rtol=2e-2)
    assert torch.equal(served.fusion.fc.weight, served.fusion.fc.weight.bfloat16().float())
    assert served.embed_tokens is run.drafter.embed_tokens and not served.norm.weight.requires_grad
    assert run.drafter.norm.weight.requires_grad
