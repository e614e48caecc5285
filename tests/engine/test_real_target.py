"""The shipped drafter on its real target, fp32: tokens equal to plain decoding, and errors a user can act on."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from eagle3_serving.engine import DecodeOptions, EmbeddedEngine
from eagle3_serving.errors import InputError

QUESTIONS = [
    "A baker sells 14 loaves in the morning and 9 in the afternoon. How many loaves in a week?",
    "Write a Python function that reverses the words of a sentence.",
    "Explain to a child why the sky is blue.",
]
OPTIONS = [
    DecodeOptions(max_new_tokens=40, mode="chain", k=3),
    DecodeOptions(max_new_tokens=40, mode="tree", nodes=16, depth=4, top_k=4),
]


@pytest.fixture(scope="module")
def engine(target_dir: Path, drafter_dir: Path) -> EmbeddedEngine:
    return EmbeddedEngine.load(target_dir, drafter_dir)


@pytest.fixture(scope="module")
def prompts(target_dir: Path) -> list[list[int]]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(target_dir, local_files_only=True)
    chats = [[{"role": "user", "content": question}] for question in QUESTIONS]
    return [tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False) for chat in chats]


def test_speculation_equals_plain_decoding(engine: EmbeddedEngine, prompts: list[list[int]]) -> None:
    accepted = {options.mode: 0 for options in OPTIONS}
    for prompt in prompts:
        plain = engine.generate(prompt, DecodeOptions(max_new_tokens=40, mode="plain"))
        for options in OPTIONS:
            speculative = engine.generate(prompt, options)
            assert speculative.token_ids == plain.token_ids
            accepted[options.mode] += sum(speculative.accepted)
    assert min(accepted.values()) > 0  # a drafter that is never right would pass the equality too


@pytest.mark.parametrize(
    "change, said",
    [
        ({"hidden_size": 1024, "target_hidden_size": 1024}, "hidden size 1024"),
        ({"vocab_size": 32000}, "vocabulary of 32000"),
        ({"eagle_aux_hidden_state_layer_ids": [2, 20, 37]}, "layers [2, 20, 37]"),
    ],
)
def test_a_checkpoint_for_another_target_is_refused(
    change: dict[str, object], said: str, engine: EmbeddedEngine, drafter_dir: Path, tmp_path: Path
) -> None:
    from eagle3_serving.engine.pair import load_for

    shutil.copy(drafter_dir / "model.safetensors", tmp_path)
    config = json.loads((drafter_dir / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(InputError) as error:
        load_for(engine.target, tmp_path)
    assert "for another target" in str(error.value) and said in str(error.value)


def test_a_directory_that_holds_no_target_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="config.json is missing"):
        EmbeddedEngine.load(tmp_path, dtype=torch.float32)
