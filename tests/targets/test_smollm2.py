"""The embedded default target is the one that everything was measured on."""

import json
from pathlib import Path

import torch
from safetensors import safe_open

from eagle3_serving.targets.fetch import WEIGHTS, tensors_sha256
from eagle3_serving.targets.smollm2 import RECIPE


def test_the_target_is_the_one_that_was_measured(target_dir: Path) -> None:
    assert tensors_sha256(target_dir / WEIGHTS) == RECIPE.tensors_sha256
    with safe_open(target_dir / WEIGHTS, framework="pt") as file:
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.bfloat16}  # noqa: SIM118
    config = json.loads((target_dir / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["rms_norm_eps"] == 1e-5
    assert config["rope_parameters"]["rope_theta"] == 100000.0
    assert config["tie_word_embeddings"] is True
    generation = json.loads((target_dir / "generation_config.json").read_text())
    assert [generation[f"{kind}_token_id"] for kind in ("bos", "eos", "pad")] == [1, 2, 2]


def test_the_tokenizer_knows_how_to_chat(target_dir: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(target_dir, local_files_only=True)
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    assert text.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") == 2
