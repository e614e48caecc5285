"""The language models inside models of images and texts: targets like others, for texts."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tiny import SIZES, tiny_drafter

from eagle3_serving.engine import DecodeOptions, EmbeddedEngine, Target
from eagle3_serving.engine.text_tower import TextTower

SEEN = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
QWEN_SEEN = {"depth": 1, "hidden_size": 16, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 16}
THREE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
NONE = {"video_token_id": 9, "vision_start_token_id": 8}
WHOLE: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "gemma3": ("Gemma3", {**SIZES, "sliding_window": 5}, {"vision_config": SEEN, "mm_tokens_per_image": 4}),
    "mistral3": ("Mistral3", {**SIZES, "model_type": "mistral"}, {"vision_config": {**SEEN, "model_type": "pixtral"}}),
    "llava": (
        "Llava",
        {**SIZES, "model_type": "llama"},
        {"vision_config": {**SEEN, "model_type": "clip_vision_model"}},
    ),
    "qwen2_5_vl": (
        "Qwen2_5_VL",
        {**SIZES, "num_attention_heads": 2, "rope_parameters": THREE},
        {"vision_config": QWEN_SEEN, **NONE},
    ),
    "qwen3_vl": (
        "Qwen3VL",
        {**SIZES, "rope_parameters": THREE},
        {"vision_config": {**QWEN_SEEN, "deepstack_visual_indexes": [0]}, **NONE},
    ),
}
PROMPT = [1, 2, 3, 4, 5, 6, 7]


@pytest.mark.parametrize("name", WHOLE)
@torch.inference_mode()
def test_the_text_of_a_model_of_images_is_said_plain_and_drafted(name: str, tmp_path: Path) -> None:
    family, text, more = WHOLE[name]
    torch.manual_seed(4)
    config = getattr(transformers, f"{family}Config")(text_config=text, image_token_id=10, **more)
    made = getattr(transformers, f"{family}ForConditionalGeneration")(config).eval()
    made.save_pretrained(tmp_path)
    said = list(PROMPT)
    for _ in range(20):
        said.append(int(made(input_ids=torch.tensor([said]), use_cache=False).logits[0, -1].argmax()))
    engine = EmbeddedEngine(Target.load(tmp_path), tiny_drafter(4))
    assert isinstance(engine.target.model, TextTower) and engine.target.num_layers == 4
    accepted = 0
    for options in (DecodeOptions(20, "plain"), DecodeOptions(20, "tree", nodes=60, depth=3, top_k=12)):
        one = engine.generate(PROMPT, options)
        assert list(one.token_ids) == said[len(PROMPT) :]
        accepted += sum(one.accepted)
    assert accepted
