"""Who is measured: an engine as it is started, the draft that it makes, and which of them fit the device together."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eagle3_serving.engine.draft import TreeShape
from eagle3_serving.errors import InputError

# what a deadline may leave out comes last
NAMES = {
    "vllm": ("plain", "vllm-chain-3", "tree-16", "load", "tree-60", "tree-8", "chain-3", "auto"),
    "sglang": ("plain", "own:3:4:8", "auto", "3:4:8", "own-adaptive", "5:4:12", "1:4:3"),
}
# of a vLLM tree that is named by its nodes alone: depth and top-k
USUAL = {8: (4, 3), 16: (5, 4), 60: (8, 10)}
CHAIN = 3
IN_FP8 = "-fp8"  # the drafter's weights
_TREE = re.compile(rf"tree-(\d+)(?:-d(\d+)-k(\d+))?(?:{IN_FP8})?")


@dataclass(frozen=True)
class Pair:
    """A target with its drafter. `dummy`: the engine makes the target's weights up, so that nothing that is drafted is
    right, and acceptance is simulated. `prompts` as token ids; `gib` that an engine takes for the target's weights."""

    name: str
    target: Path
    drafter: Path
    prompts: tuple[tuple[int, ...], ...]
    gib: float
    dummy: bool = False


@dataclass(frozen=True)
class Contender:
    """`shape` is what it drafts: None where that is not fixed. `gib` is its claim on the device's memory."""

    name: str
    pair: Pair
    shape: TreeShape | None
    gib: float
    arguments: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def key(self) -> str:
        return f"{self.pair.name}/{self.name}"

    @property
    def plain(self) -> bool:
        return self.name == "plain"


def tree_named(name: str) -> TreeShape | None:
    """`tree-16`, or `tree-16-d8-k10` with depth and top-k, `-fp8` behind either; None for what is no tree. Raises InputError."""
    match = _TREE.fullmatch(name)
    if match is None:
        return None
    nodes = int(match[1])
    if match[2] is None and nodes not in USUAL:
        raise InputError(f"--contenders {name}: say its depth and top-k too, as tree-{nodes}-d5-k4")
    depth, top_k = (int(match[2]), int(match[3])) if match[2] else USUAL[nodes]
    if not 0 < depth <= nodes or top_k < 1:
        raise InputError(f"--contenders {name}: a tree of {nodes} nodes is 1 to {nodes} deep, top-k at least 1")
    return TreeShape(nodes, depth, top_k)


def check_names(wanted: Sequence[str]) -> None:
    """Raises InputError naming what no engine's step knows."""
    for name in wanted:
        if tree_named(name) is None and not any(name in known for known in NAMES.values()):
            known = "; ".join(f"{engine}: {', '.join(names)}" for engine, names in NAMES.items())
            raise InputError(f"--contenders: {name!r} is not known ({known})")


def chosen(engine: str, wanted: Sequence[str]) -> list[str]:
    """Of `wanted` what this engine has, or all that it has; plain decoding first, since all is held against it."""
    known = NAMES[engine]
    mine = [name for name in wanted if name in known or (engine == "vllm" and tree_named(name))]
    return list(dict.fromkeys(["plain", *(mine if wanted else known)]))


def waves(contenders: Sequence[Contender], gib: float) -> list[list[Contender]]:
    """Those that fit `gib` together, in the order given; none shares a device without room, so 0 starts one at a time."""
    made: list[list[Contender]] = []
    left = 0.0
    for contender in contenders:
        if not made or contender.gib > left:
            made.append([])
            left = gib
        made[-1].append(contender)
        left -= contender.gib
    return made
