"""A user's message as the target's own chat template spells it; as it is, where the target has none (a base model)."""

import json
import sys
from functools import cache
from pathlib import Path
from typing import Any

from eagle3_serving.errors import InputError

_TEMPLATES = ("chat_template.jinja", "chat_template.json", "additional_chat_templates")


def load_tokenizer(target: Path) -> Any:
    """The tokenizer in a target's directory; nothing is fetched, and no code of its own is run. Raises InputError where there
    is none."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(target, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # what is missing or damaged raises nearly anything there
        why = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(
            f"{target}: its tokenizer cannot be loaded ({why}); tokenizer.json and tokenizer_config.json must be there"
        ) from None
    if not getattr(tokenizer, "chat_template", None):
        _say_bare(target)
    return tokenizer


def chat_ids(tokenizer: Any, prompt: str) -> list[int]:
    """Token ids of one user message, up to where the answer begins; of the bare text, which the answer continues, where there
    is no chat template."""
    if not getattr(tokenizer, "chat_template", None):
        bare: list[int] = tokenizer(prompt)["input_ids"]
        return bare
    message = [{"role": "user", "content": prompt}]
    made: list[int] = tokenizer.apply_chat_template(message, add_generation_prompt=True, return_dict=True)["input_ids"]
    return made


def has_chat_template(target: Path) -> bool:
    """Whether the target's files hold one, told without loading its tokenizer."""
    if any((target / name).exists() for name in _TEMPLATES):
        return True
    try:
        config = json.loads((target / "tokenizer_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return True  # not ours to judge: the engine says what is wrong
    return not isinstance(config, dict) or bool(config.get("chat_template"))


@cache
def _say_bare(target: Path) -> None:
    """Once a process: a chat model whose template was lost would answer badly, and nobody would know why."""
    print(
        f"{target}: no chat template (chat_template.jinja, or a key of tokenizer_config.json): taken for a base model, which "
        "continues each prompt's bare text",
        file=sys.stderr,
    )
