"""What a sweep compares: plain decoding, the engine's own EAGLE-3 in a fixed shape, and ours."""

import re
from dataclasses import dataclass
from typing import Literal

from eagle3_serving.errors import InputError

Kind = Literal["plain", "chain", "tree", "auto"]

DEFAULTS: dict[str, tuple[str, ...]] = {
    "embedded": ("plain", "chain-3", "tree-16", "auto"),
    "vllm": ("plain", "own-chain-3", "auto"),
    "sglang": ("plain", "own-chain-3", "own-tree-5-4-8", "auto"),
}
FORMS = "plain, chain-K, tree-NODES (vLLM, embedded), tree-STEPS-TOPK-TOKENS (SGLang), auto, and own-... for the engine's own"


@dataclass(frozen=True)
class Setting:
    """`own`: the engine's EAGLE-3 without our plugin. `sizes`: a chain's length; a tree's nodes, or its steps, top-k and
    tokens as SGLang counts them."""

    name: str
    kind: Kind
    own: bool = False
    sizes: tuple[int, ...] = ()


def parse_setting(name: str, engine: str) -> Setting:
    """Raises InputError where the name is none of `FORMS`, or not for this engine."""
    found = re.fullmatch(r"(own-)?(plain|chain|tree|auto)((?:-\d+)*)", name)
    if found is None:
        raise InputError(f"setting {name!r} is not known: {FORMS}")
    own, kind, rest = bool(found[1]), found[2], found[3]
    sizes = tuple(int(n) for n in rest.split("-")[1:])
    wanted = {"plain": 0, "auto": 0, "chain": 1, "tree": 3 if engine == "sglang" else 1}[kind]
    if len(sizes) != wanted or 0 in sizes or (own and kind == "plain"):
        raise InputError(f"setting {name!r} is not one for {engine}: {FORMS}")
    if own and engine == "embedded":
        raise InputError(f"setting {name!r}: the embedded engine has no EAGLE-3 of its own beside ours")
    if own and engine == "vllm" and kind != "chain":
        raise InputError(f"setting {name!r}: vLLM's own EAGLE-3 is a chain: own-chain-K")
    return Setting(name, kind, own, sizes)  # type: ignore[arg-type]
