"""A recording stands in for the target: same tokens, same acceptance, whatever is drafted."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from eagle3_serving.engine import DecodeOptions, EmbeddedEngine, Sampling
from eagle3_serving.eval.replay import RecordedTarget
from eagle3_serving.train.data import Answer
from eagle3_serving.train.replies import greedy_answers

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "engine"))
from tiny import tiny_drafter, tiny_target

PROMPTS = [[1, 2, 3], [4, 4], [9, 0, 7, 2], [11], [5, 6], [8, 3, 8], [10, 1]]


@pytest.mark.parametrize(
    "options",
    [
        DecodeOptions(30, "chain", k=3),
        DecodeOptions(30, "tree", nodes=12, depth=3, top_k=4),
        DecodeOptions(30, "tree", nodes=12, depth=3, top_k=4, lookup=True),
    ],
    ids=lambda o: f"{o.mode}{o.lookup}",
)
def test_the_replay_accepts_what_the_target_accepts(options: DecodeOptions) -> None:
    target, drafter = tiny_target(1), tiny_drafter(1)
    engine = EmbeddedEngine(target, drafter)
    answers = greedy_answers(engine, PROMPTS, 30, 2, progress=False)
    real = engine.generate_many(PROMPTS, options, 2)
    recorded = RecordedTarget(target, drafter.config.aux_layers, answers)
    replayed = EmbeddedEngine(recorded, drafter).generate_many(PROMPTS, options, 2)
    assert [one.token_ids for one in replayed] == [one.token_ids for one in real]
    assert [one.accepted for one in replayed] == [one.accepted for one in real]
    assert sum(sum(one.accepted) for one in replayed) > 0


@pytest.mark.parametrize("proposals", ["coupled", "top"])
def test_drawn_answers_are_played_back_by_the_noise_that_drew_them(proposals: str) -> None:
    target, drafter = tiny_target(1), tiny_drafter(1)
    engine = EmbeddedEngine(target, drafter)
    sampling = Sampling(0.8, seed=3)
    options = DecodeOptions(30, "tree", nodes=12, depth=3, top_k=4, sampling=sampling, proposals=proposals)  # type: ignore[arg-type]
    real = engine.generate_many(PROMPTS, options, 2)
    answers = [Answer(str(n), tuple(p), one.token_ids) for n, (p, one) in enumerate(zip(PROMPTS, real, strict=True))]
    recorded = EmbeddedEngine(RecordedTarget(target, drafter.config.aux_layers, answers), drafter)
    replayed = recorded.generate_many(PROMPTS, options, 3)
    assert [one.token_ids for one in replayed] == [one.token_ids for one in real]
    assert [one.accepted for one in replayed] == [one.accepted for one in real]
    other = recorded.generate_many(PROMPTS, replace(options, sampling=replace(sampling, seed=4)), 3)
    assert ([one.accepted for one in other] == [one.accepted for one in real]) == (proposals == "top")
