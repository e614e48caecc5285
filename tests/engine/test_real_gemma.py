"""Gemma 3 270M, where it was fetched: transformers' tokens beyond a window, plain and drafted, by a drafter trained here."""

import json
from pathlib import Path

import pytest
import torch

from eagle3_serving.engine import DecodeOptions, EmbeddedEngine
from eagle3_serving.targets.chat import chat_ids, has_chat_template, load_tokenizer
from eagle3_serving.train.job import fit
from eagle3_serving.train.options import TrainJob, TrainOptions

WINDOW, TOKENS = 512, 20
TEXT = "The river comes down from the hills, past the old mill and the two farms, and the road follows it to the sea. "
TEXTS = ["The capital of France is", "def fib(n):\n", TEXT * 20 + "The capital of Italy is"]


@pytest.fixture(scope="module")
def prompts(gemma_dir: Path) -> list[list[int]]:
    tokenizer = load_tokenizer(gemma_dir)
    return [chat_ids(tokenizer, text) for text in TEXTS]


@pytest.fixture(scope="module")
def plain(gemma_dir: Path, prompts: list[list[int]]) -> list[list[int]]:
    """By transformers itself."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(gemma_dir, dtype=torch.float32)
    asked = {"max_new_tokens": TOKENS, "do_sample": False, "eos_token_id": None}
    return [model.generate(torch.tensor([ids]), **asked)[0, len(ids) :].tolist() for ids in prompts]


def test_prompts_of_a_base_model_are_bare_text(
    gemma_dir: Path, prompts: list[list[int]], capfd: pytest.CaptureFixture[str]
) -> None:
    assert not has_chat_template(gemma_dir)
    assert prompts[0] == [2, 818, 5279, 529, 7001, 563]  # <bos>, or it answers nonsense
    assert len(prompts[2]) > WINDOW


def test_a_drafter_is_trained_and_drafts_its_tokens(
    gemma_dir: Path, prompts: list[list[int]], plain: list[list[int]], tmp_path: Path
) -> None:
    answers = tmp_path / "answers.jsonl"
    rows = [{"id": str(n), "prompt_ids": ids, "response_ids": plain[n]} for n, ids in enumerate(prompts)]
    answers.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = TrainOptions(tokens=60, tokens_per_batch=1024, closed_form_batches=3)
    job = TrainJob(gemma_dir, tmp_path / "run", answers=(answers,), options=options, draft_vocab_size=256)
    run = fit(TrainJob(**{**vars(job), "max_length": 1024, "max_prompt": 1000, "held_out": 0, "eval_limit": 0}))
    assert run.drafter.config.vocab_size == 262144 and run.coverage == 1.0
    engine = EmbeddedEngine(run.target, run.drafter)
    tree = DecodeOptions(TOKENS, "tree", nodes=24, depth=4, top_k=6, eos_ids=())
    for options_ in (DecodeOptions(TOKENS, "plain", eos_ids=()), tree, DecodeOptions(TOKENS, "chain", k=3, eos_ids=())):
        said = engine.generate_many(prompts, options_, 3)
        assert [list(one.token_ids) for one in said] == plain
        if options_.mode != "plain":
            assert sum(sum(one.accepted) for one in said) > 0
