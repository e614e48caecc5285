"""The names of number formats: short ones inside, torch's and the engines' own words where people give them."""

from pathlib import Path
from typing import Any

from eagle3_serving.errors import InputError

TORCH = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}  # short -> torch's, vLLM's and SGLang's
FP32_MAX = 3.4028234663852886e38  # a temperature beyond it is no number to an engine
ENGINES = {**TORCH, "auto": "auto"}  # what an engine's --dtype is given
WORDS = {**{name: name for name in ENGINES}, **{long: name for name, long in TORCH.items()}}
WORDS |= {"float": "fp32", "half": "fp16"}
KNOWN = "fp32 (float32, float), bf16 (bfloat16), fp16 (float16, half), auto"


def short_dtype(word: str) -> str:
    """ "fp32", "bf16", "fp16" or "auto" of any of their names. Raises InputError on another word."""
    name = WORDS.get(word.removeprefix("torch.").lower())
    if name is None:
        raise InputError(f"dtype {word!r:.40} is not known: one of {KNOWN}")
    return name


def own_dtype(config: dict[str, Any], where: Path) -> str:
    """The dtype that a model's config.json states ("fp32" where it is silent). Raises InputError on one not known here."""
    text = config.get("text_config")
    inner = text if isinstance(text, dict) else {}
    said = next((c[key] for c in (inner, config) for key in ("dtype", "torch_dtype") if c.get(key)), "float32")
    try:
        name = short_dtype(str(said))
    except InputError:
        raise InputError(f"{where}: its dtype is {said!r:.40}: give --dtype {', '.join(TORCH)}") from None
    return "fp32" if name == "auto" else name
