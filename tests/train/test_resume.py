"""A run that was stopped goes on to the very weights that an undisturbed run reaches."""

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from eagle3_serving.drafter import Drafter, DrafterConfig
from eagle3_serving.engine.target import Target
from eagle3_serving.errors import InputError
from eagle3_serving.train.data import Answer
from eagle3_serving.train.options import TrainOptions
from eagle3_serving.train.plot import plot_training
from eagle3_serving.train.run import Trainer

VOCAB, HIDDEN = 24, 16


@pytest.fixture(scope="module")
def target() -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=HIDDEN,
        intermediate_size=32,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.3,
    )
    return LlamaForCausalLM(config).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def answers(target: Any) -> list[Answer]:
    """The target's own greedy answers to random prompts."""
    prompts = torch.randint(0, VOCAB, (24, 5), generator=torch.Generator().manual_seed(1))
    said = target.generate(prompts, max_new_tokens=12, do_sample=False, eos_token_id=None, pad_token_id=0)
    return [Answer(str(n), tuple(row[:5]), tuple(row[5:])) for n, row in enumerate(said.tolist())]


def make_trainer(
    target: Any, answers: list[Answer], directory: Path, tokens: int = 1200, rate: float = 4e-4, compiled: bool = False
) -> Trainer:
    directory.mkdir(exist_ok=True)
    torch.manual_seed(2)
    config = DrafterConfig(
        hidden_size=HIDDEN,
        intermediate_size=32,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=4,
        vocab_size=VOCAB,
        draft_vocab_size=VOCAB,
        target_hidden_size=HIDDEN,
        aux_layers=(1, 2, 3),
        rms_norm_eps=1e-6,
    )
    drafter = Drafter(config)
    drafter.embed_tokens.weight.data.copy_(target.model.embed_tokens.weight)
    options = TrainOptions(
        tokens=tokens,
        learning_rate=rate,
        tokens_per_batch=60,
        ttt_steps=2,
        warmup=2,
        closed_form_batches=3,
        save_every=4,
        log_every=1,
        compile=compiled,
    )
    return Trainer(drafter, Target(target), answers[4:], answers[:4], directory, options)


def test_a_stopped_run_resumes_to_the_same_weights(
    target: Any, answers: list[Answer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = make_trainer(target, answers, tmp_path / "whole")
    whole.run()
    assert whole.step > 10
    stopped = make_trainer(target, answers, tmp_path / "stopped")
    step = stopped.train_step

    def stop_after_six(*args: Any) -> int:
        stopped.stopping = stopped.step == 5
        return step(*args)

    monkeypatch.setattr(stopped, "train_step", stop_after_six)
    stopped.run()
    assert stopped.step == 6
    resumed = make_trainer(target, answers, tmp_path / "stopped")
    resumed.run()
    assert resumed.step == whole.step
    for ours, theirs in zip(resumed.parameters, whole.parameters, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)


def test_a_compiled_run_takes_the_compiled_step(target: Any, answers: list[Answer], tmp_path: Path) -> None:
    """That it is the same step is `test_ttt.py`'s: compiling takes most of a minute."""
    plain, compiled = (
        make_trainer(target, answers, tmp_path / str(on), tokens=200, compiled=on) for on in (False, True)
    )
    assert plain.draft_step == plain.drafter.step != compiled.draft_step


def test_another_recipe_in_the_same_directory_is_refused(target: Any, answers: list[Answer], tmp_path: Path) -> None:
    make_trainer(target, answers, tmp_path / "run", tokens=60).run()
    with pytest.raises(InputError, match=r"learning_rate 0\.0004, not 0\.001"):
        make_trainer(target, answers, tmp_path / "run", tokens=60, rate=1e-3).run()
    with pytest.raises(InputError, match=r"holds a run on other answers"):
        make_trainer(target, answers[:12], tmp_path / "run", tokens=60).run()


def test_another_target_and_other_answers_are_told_by_their_content(
    target: Any, answers: list[Answer], tmp_path: Path
) -> None:
    """The same sizes, names, counts and options: one weight of a middle layer, or one token, is enough."""
    make_trainer(target, answers, tmp_path / "run", tokens=60).run()
    state = (tmp_path / "run" / "state.pt").read_bytes()
    other = copy.deepcopy(target)
    other.model.layers[2].mlp.up_proj.weight.data[3, 1] += 1e-3
    with pytest.raises(InputError, match=r"holds a run for another target"):
        make_trainer(other, answers, tmp_path / "run", tokens=60).run()
    last = answers[-1]
    said = [*answers[:-1], replace(last, response_ids=(*last.response_ids[:-1], (last.response_ids[-1] + 1) % VOCAB))]
    with pytest.raises(InputError, match=r"holds a run on other answers"):
        make_trainer(target, said, tmp_path / "run", tokens=60).run()
    trainer = make_trainer(target, answers, tmp_path / "run", tokens=60)
    trainer.drafter.vocabulary.target_ids.copy_(trainer.drafter.vocabulary.target_ids.flip(0))
    with pytest.raises(InputError, match=r"holds a run with another draft vocabulary"):
        trainer.run()
    assert (tmp_path / "run" / "state.pt").read_bytes() == state
    make_trainer(copy.deepcopy(target), list(answers), tmp_path / "run", tokens=120).run()  # the same, loaded again


def test_a_damaged_state_is_one_line(target: Any, answers: list[Answer], tmp_path: Path) -> None:
    trainer = make_trainer(target, answers, tmp_path / "run", tokens=60)
    for content in (b"", b"garbage", b"\x80\x04N."):
        (tmp_path / "run" / "state.pt").write_bytes(content)
        with pytest.raises(InputError, match=r"state\.pt is not the state of a run .*remove it to begin anew") as error:
            trainer.run()
        assert "\n" not in str(error.value)


def test_training_teaches(target: Any, answers: list[Answer], tmp_path: Path) -> None:
    trainer = make_trainer(target, answers, tmp_path / "run", tokens=6000, rate=5e-3)
    trainer.run()
    records = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    # the first quarter sees every batch at least once, and so does the last
    right = [sum(record["accuracy"]) for record in records if "loss" in record]
    quarter = len(right) // 4
    assert sum(right[-quarter:]) > 1.5 * sum(right[:quarter])
    plot = plot_training(tmp_path / "run" / "log.jsonl", tmp_path / "training.png")
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_the_scale_is_folded_into_the_fusion(target: Any, answers: list[Answer], tmp_path: Path) -> None:
    trainer = make_trainer(target, answers, tmp_path / "run", tokens=100)
    trainer.run()
    raw = trainer.features(0).aux_BLF
    average = trainer.average[0].clone()
    expected = (raw / trainer.scale_F) @ average.T
    torch.testing.assert_close(trainer.finished().fuse(raw), expected, atol=1e-4, rtol=1e-4)
