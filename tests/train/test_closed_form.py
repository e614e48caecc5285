"""The start that needs no gradient, in EAGLE-3's shape and in EAGLE-3.1's."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from eagle3_serving.drafter import Drafter
from eagle3_serving.engine import EmbeddedEngine
from eagle3_serving.train.data import Answer
from eagle3_serving.train.options import TrainOptions
from eagle3_serving.train.replies import greedy_answers
from eagle3_serving.train.run import Trainer
from eagle3_serving.train.ttt import TTTLoss, unroll

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "engine"))
from tiny import VOCAB, tiny_drafter, tiny_target


@pytest.fixture(scope="module")
def answers() -> list[Answer]:
    generator = torch.Generator().manual_seed(1)
    prompts = torch.randint(0, VOCAB, (40, 5), generator=generator).tolist()
    return greedy_answers(EmbeddedEngine(tiny_target(1)), prompts, 20, 20, progress=False)


def begun(answers: list[Answer], directory: Path, **shape: Any) -> Trainer:
    """A trainer after its start."""
    target = tiny_target(1)
    target.body.norm.weight.data = torch.linspace(0.5, 2.0, 16)  # a final norm that says something
    torch.manual_seed(3)
    drafter = Drafter(replace(tiny_drafter(1).config, **shape))
    for parameter in drafter.parameters():
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=0.02)
    drafter.embed_tokens.weight.data.copy_(target.embedding)
    options = TrainOptions(ttt_steps=3, tokens_per_batch=120, closed_form_batches=50, bf16=False)
    directory.mkdir(exist_ok=True)
    trainer = Trainer(drafter, target, answers, [], directory, options)
    trainer.start()
    return trainer


def loss(trainer: Trainer) -> TTTLoss:
    return trainer.loss(trainer.scaled(trainer.features(0)))


def test_post_norm_feedback_begins_as_the_state_that_fc_gives(answers: list[Answer], tmp_path: Path) -> None:
    """The head takes the norm's weight: the first step says the same, and what it feeds back is of rms 1, as the state sought."""
    paper, fed = begun(answers, tmp_path / "a"), begun(answers, tmp_path / "b", norm_output=True)
    torch.testing.assert_close(loss(fed).losses_S[0], loss(paper).losses_S[0], atol=1e-5, rtol=1e-5)
    batch = fed.scaled(fed.features(0))
    step = next(iter(unroll(fed.drafter, batch, batch.taught_BR, 1)))
    rms_N = fed.drafter.norm(step.hidden_NH).square().mean(-1).sqrt()
    torch.testing.assert_close(rms_N, torch.ones_like(rms_N), atol=1e-3, rtol=1e-3)
    fused = fed.drafter.fuse(batch.aux_BLF).detach().square().mean(-1).sqrt()
    assert 0.3 < float(fused.mean()) < 1.2


def test_normed_features_are_fitted_as_fc_reads_them(answers: list[Answer], tmp_path: Path) -> None:
    trainer = begun(answers, tmp_path / "a", pre_fc_norm="per_aux")
    rows = trainer.drafter.fusion.normalise(
        torch.cat([trainer.features(n).aux_BLF[:, 4:].flatten(0, 1) for n in range(2)])
    )
    rms_F = rows[rows.abs().sum(-1) > 0].detach().square().mean(0).sqrt()
    assert float(rms_F.min()) > 0.7 and float(rms_F.max()) < 1.4
    plain = begun(answers, tmp_path / "b")
    start, other = float(loss(trainer).losses_S[0]), float(loss(plain).losses_S[0])
    untrained = torch.tensor(float(VOCAB)).log()
    assert start < 0.9 * float(untrained), "the fit says something"
    assert start < other + 0.25, "and no less than without norms"
