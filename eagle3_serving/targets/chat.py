"""A user's message as the target's own chat template spells it."""

from pathlib import Path
from typing import Any


def load_tokenizer(target: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(target)


def chat_ids(tokenizer: Any, prompt: str) -> list[int]:
    """Token ids of one user message, up to where the answer begins."""
    message = [{"role": "user", "content": prompt}]
    ids: list[int] = tokenizer.apply_chat_template(message, add_generation_prompt=True, return_dict=True)["input_ids"]
    return ids
