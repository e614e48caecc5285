"""Prompts longer than a server takes by itself: it is started with room for them."""

from pathlib import Path

from eagle3_serving.eval.options import EvalOptions
from eagle3_serving.eval.prompts import Prompt
from eagle3_serving.eval.vllm import room_for
from eagle3_serving.serve.vllm import VllmOptions
from eagle3_serving.targets.chat import chat_ids, load_tokenizer


def test_the_server_has_room_for_the_longest_prompt(target_dir: Path) -> None:
    options = EvalOptions("vllm", target_dir, Path(), (), max_tokens=64)
    short, long = (Prompt(str(n), "qa", ("word " * n,)) for n in (300, 4000))
    assert room_for(options, {"qa": [short]}) == VllmOptions.max_model_len
    tokens = len(chat_ids(load_tokenizer(target_dir), long.turns[0]))
    assert tokens > 4000
    assert room_for(options, {"qa": [short], "more": [long]}) == tokens + 64
