"""How long texts get, so that a server is started with room for them."""

from collections.abc import Iterable
from pathlib import Path

from eagle3_serving.checkpoint.facts import TargetFacts
from eagle3_serving.targets.chat import chat_ids, load_tokenizer


def room_for(target: Path, prompts: Iterable[str], tokens: int, least: int) -> int:
    """Tokens of the longest prompt and an answer of `tokens`, as far as the target knows positions; `least` where that is
    more."""
    # no more tokens than characters, but for the chat's own
    long = [prompt for prompt in prompts if len(prompt) + tokens >= least // 2]
    if not long:
        return least
    tokenizer = load_tokenizer(target)
    room = tokens + max(len(chat_ids(tokenizer, prompt)) for prompt in long)
    return max(least, min(room, TargetFacts.of(target).max_position_embeddings or room))
