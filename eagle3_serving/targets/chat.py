"""A user's message as the target's own chat template spells it."""

from pathlib import Path
from typing import Any

from eagle3_serving.errors import InputError


def load_tokenizer(target: Path) -> Any:
    """The tokenizer in a target's directory; nothing is fetched, and no code of its own is run. Raises InputError where there
    is none."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(target, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # what is missing or damaged raises nearly anything there
        why = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(
            f"{target}: its tokenizer cannot be loaded ({why}); tokenizer.json and tokenizer_config.json must be there"
        ) from None


def chat_ids(tokenizer: Any, prompt: str) -> list[int]:
    """Token ids of one user message, up to where the answer begins. Raises InputError where there is no chat template."""
    message = [{"role": "user", "content": prompt}]
    try:
        made = tokenizer.apply_chat_template(message, add_generation_prompt=True, return_dict=True)
    except ValueError as error:
        if getattr(tokenizer, "chat_template", None):
            raise
        name = getattr(tokenizer, "name_or_path", "the target")
        raise InputError(
            f"{name}: no chat template (chat_template.jinja, or a key of tokenizer_config.json): {str(error).split('.')[0][:120]}"
        ) from None
    ids: list[int] = made["input_ids"]
    return ids
