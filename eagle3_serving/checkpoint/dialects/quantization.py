"""Quantisation in config.json: lists of modules, by name or pattern, that must mean the same modules under their new names."""

import fnmatch
import re
from collections.abc import Callable
from typing import Any

from eagle3_serving.checkpoint.names import canonical_name
from eagle3_serving.checkpoint.neutral import Neutral
from eagle3_serving.checkpoint.source import Json
from eagle3_serving.errors import CheckError

_LISTS = ("ignore", "exclude_modules", "modules_to_not_convert", "ignored_layers", "targets")
_PATTERN = "re:"
_REPEATS = re.compile(r"[+*{]")
_SLOW = re.compile(r"\)[+*{]")  # what repeats a group, or repeats often, can take for ever
_MOST_REPEATS = 6
_DEEPEST = 4


def quantization_keys(neutral: Neutral, rename: Callable[[str], str]) -> Json:
    """The source's quantisation, its lists of modules under their new names; a pattern is kept where it means the same
    modules, and written out as names where it would not. Raises CheckError on a pattern that cannot be read."""
    raw = neutral.source.config.get("quantization_config")
    if not isinstance(raw, dict):
        return {}
    modules = {
        tensor.name.rsplit(".", 1)[0]: rename(name).rsplit(".", 1)[0]
        for name, tensor in neutral.tensors.items()
        if len(tensor.shape) == 2
    }
    return {"quantization_config": _renamed(raw, modules, rename, _DEEPEST)}


def quantised_in_part(neutral: Neutral) -> list[str]:
    """Modules of a quantised drafter that are not: which they are, an engine is told by name alone."""
    scaled = {name.rsplit(".", 1)[0] for name in neutral.scales}
    modules = (name.rsplit(".", 1)[0] for name, tensor in neutral.tensors.items() if len(tensor.shape) == 2)
    return sorted(set(modules) - scaled - {"embed_tokens", "lm_head"}) if scaled else []


def _renamed(value: Any, modules: dict[str, str], rename: Callable[[str], str], depth: int) -> Any:
    if not isinstance(value, dict) or not depth:
        return value
    found = {}
    for key, inner in value.items():
        if key in _LISTS and isinstance(inner, list):
            found[key] = list(dict.fromkeys(new for entry in inner for new in _entries(entry, modules, rename)))
        else:
            found[key] = _renamed(inner, modules, rename, depth - 1)
    return found


def _entries(entry: Any, modules: dict[str, str], rename: Callable[[str], str]) -> list[Any]:
    if not isinstance(entry, str):
        return [repr(entry)] if isinstance(entry, dict | list) else [entry]
    match = _matcher(entry)
    if match is None:
        return [rename(canonical_name(f"{entry}.")).removesuffix(".")]
    meant = {new for old, new in modules.items() if match(old)}
    return [entry] if meant == {new for new in modules.values() if match(new)} else sorted(meant)


def _matcher(entry: str) -> Callable[[str], bool] | None:
    """Whether a module's name is meant, as compressed-tensors (`re:`) and ModelOpt (wildcards) have it; None: a name."""
    if entry.startswith(_PATTERN):
        pattern = entry.removeprefix(_PATTERN)
        if _SLOW.search(pattern) or len(_REPEATS.findall(pattern)) > _MOST_REPEATS:
            raise CheckError(f"quantization_config: pattern {entry!r:.80} is not computed here; name the modules")
        try:
            compiled = re.compile(pattern)
        except (re.error, RecursionError, OverflowError) as error:
            raise CheckError(f"quantization_config: pattern {entry!r:.80} cannot be read: {error}") from None
        return lambda name: compiled.match(name) is not None
    if any(mark in entry for mark in "*?["):
        return lambda name: fnmatch.fnmatchcase(name, entry)
    return None
