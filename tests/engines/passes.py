"""How many passes accepted how many draft tokens: of a request that a real SGLang served, and of the embedded engine."""

from collections import Counter
from typing import Any

import httpx

from eagle3_serving.engine import DecodeOptions, EmbeddedEngine


def ask(url: str, prompt: list[int], tokens: int) -> dict[str, Any]:
    """A greedy request of exactly `tokens`; `passes` finds the rest in the reply."""
    sampling = {"temperature": 0, "max_new_tokens": tokens, "ignore_eos": True}
    reply = httpx.post(f"{url}/generate", json={"input_ids": prompt, "sampling_params": sampling}, timeout=120.0)
    found: dict[str, Any] = reply.raise_for_status().json()
    return found


def of_reply(reply: dict[str, Any]) -> list[int]:
    """Of the passes of one answer how many accepted 0, 1, 2 and more draft tokens."""
    found: list[int] = reply["meta_info"]["spec_correct_drafts_histogram"]
    return found


def of_embedded(engine: EmbeddedEngine, prompts: list[list[int]], options: DecodeOptions) -> list[list[int]]:
    """The same of the embedded engine, an answer after the other."""
    counts = [Counter(engine.generate(prompt, options).accepted) for prompt in prompts]
    return [[count[accepted] for accepted in range(1 + max(count))] for count in counts]
