"""Prompts longer than a server takes by itself: it is started with room for them."""

from pathlib import Path

from eagle3_serving.serve.room import room_for
from eagle3_serving.serve.vllm import VllmOptions
from eagle3_serving.targets.chat import chat_ids, load_tokenizer


def test_the_server_has_room_for_the_longest_prompt(target_dir: Path) -> None:
    least = VllmOptions.max_model_len
    short, long = ("word " * n for n in (300, 4000))
    assert room_for(target_dir, [short], 64, least) == least
    tokens = len(chat_ids(load_tokenizer(target_dir), long))
    assert tokens > 4000
    assert room_for(target_dir, [short, long], 64, least) == tokens + 64
    assert room_for(target_dir, [short, long * 3], 64, least) == 8192  # the target knows no more
