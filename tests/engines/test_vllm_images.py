"""The text of a model of images on real vLLM: with trees where the server takes no images, else by vLLM's own chain, with a line."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoTokenizer,
    CLIPImageProcessor,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from benchmarks.small_pair import save_spelling_pair
from benchmarks.vllm_engine import Job, Round, run
from eagle3_serving.engine import DecodeOptions, EmbeddedEngine, Generation

pytest.importorskip("vllm")

pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]

NODES, TOKENS, PATCH, IMAGE = 16, 30, 14, "~"
SEES = {
    "model_type": "clip_vision_model",
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 2 * PATCH,
    "patch_size": PATCH,
}
ENGINE: dict[str, Any] = {
    "max_model_len": 256,
    "block_size": 32,
    "max_num_seqs": 4,
    "max_num_batched_tokens": 256,
    "per_request_spec_decode_metrics": "detailed",
}


class Seeing(NamedTuple):
    """A model of images, the drafter of its text, texts as token ids, and what the embedded engine says to them in trees."""

    target: Path
    drafter: Path
    texts: list[list[int]]
    said: list[Generation]


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Seeing:
    """The small target that spells as the text of a model of images, so that its drafter is that one's too."""
    if find_spec("torchvision") is None:
        pytest.skip("torchvision is not installed here, and vLLM's models of images want it; pip install torchvision")
    folder = tmp_path_factory.mktemp("llava")
    text, drafter = save_spelling_pair(folder)
    model, tokenizer = LlamaForCausalLM.from_pretrained(text, dtype=torch.float32), AutoTokenizer.from_pretrained(text)
    image = int(tokenizer.convert_tokens_to_ids(IMAGE))
    whole = {"vision_config": SEES, "image_token_id": image, "tie_word_embeddings": False}
    seeing = LlavaForConditionalGeneration(LlavaConfig(text_config=model.config.to_dict(), **whole))
    seeing.model.language_model.load_state_dict(model.model.state_dict())
    seeing.lm_head.load_state_dict(model.lm_head.state_dict())
    seeing.save_pretrained(folder / "whole")
    weights = folder / "whole" / "model.safetensors"
    # named as published files have it; transformers 5 leaves a part of the name out
    named = {name.replace("vision_tower.", "vision_tower.vision_model."): x for name, x in load_file(weights).items()}
    save_file(named, weights, {"format": "pt"})
    size = {"height": 2 * PATCH, "width": 2 * PATCH}
    LlavaProcessor(
        CLIPImageProcessor(size=size, crop_size=size), tokenizer, patch_size=PATCH, image_token=IMAGE
    ).save_pretrained(folder / "whole")
    texts = [
        tokenizer(line)["input_ids"] for line in ("Tell me what you see.", "abc", "1 + 2 = 3, and 2 + 3 = 5; 3 + 4?")
    ]
    options = DecodeOptions(TOKENS, "tree", nodes=NODES, depth=8, eos_ids=())
    engine = EmbeddedEngine.load(text, drafter)
    return Seeing(folder / "whole", drafter, texts, [engine.generate(one, options) for one in texts])


def served(llava: Seeing, nodes: int, **engine: Any) -> dict[str, Any]:
    asked = Round(llava.texts, {"temperature": 0, "max_tokens": TOKENS, "ignore_eos": True, "detokenize": False})
    said = run(Job(llava.target, [asked], llava.drafter, nodes, engine={**ENGINE, **engine}))
    assert said["rounds"][0]["tokens"] == [list(one.token_ids) for one in llava.said]
    return said


@pytest.mark.supports("vllm", "tree", "models of images that take none (LLaVA, `--language-model-only`)")
def test_trees_where_the_server_takes_no_images(llava: Seeing) -> None:
    said = served(llava, NODES, language_model_only=True)
    told = said["rounds"][0]["accepted"]
    assert [steps[:-1] for steps in told] == [list(one.accepted)[:-1] for one in llava.said]
    assert f"eagle3: trees of {NODES} nodes" in said["log"]


@pytest.mark.supports("vllm", "own chain", "texts of models of images (LLaVA)")
def test_a_chain_where_it_takes_images(llava: Seeing) -> None:
    assert "chains are drafted, not trees: multimodal input" in served(llava, 3)["log"]
