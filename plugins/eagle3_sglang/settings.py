"""What the environment says of the plugin, read once in each process: SGLang has no flags for it.

| variable | default | meaning |
|---|---|---|
| `EAGLE3_SERVING` | `on` | `off`: SGLang's own EAGLE3 |
| `EAGLE3_TREES` | by device | the trees to choose from, as steps,top-k,tokens (the root included), all of one top-k: `0;1,4,3;3,4,6;5,4,12`. `0` drafts nothing. Without it and without SGLang's own flags for a tree: that on a CPU, `0;1,4,2;1,4,3;3,4,4;3,4,6;5,4,12` on a GPU, `0;1,1,2;2,1,3;3,1,4` where only chains can be verified. The flags alone fix their tree |
| `EAGLE3_PROFILE` | in the user's cache | where the costs of a step are kept: measured at start on a GPU, while serving, or before by `eagle3 tune` |
| `EAGLE3_CHECK` | `on` | `off`: serve a drafter that the check at start refuses |
| `EAGLE3_GRAPH_GB`, `EAGLE3_GRAPH_SECONDS` | `8`, `180` | the most memory and time that the trees' CUDA graphs take at start; trees that do not fit are left out with a line |
| `EAGLE3_GATE_CONTEXT`, `_TEMPERATURE`, `_GRAMMAR`, `_ACCEPTED` | see there | requests for which nothing is drafted: `eagle3_serving.serve.gates` |
| `EAGLE3_CHOICE` | none | `survey`: some steps of each tree in turn, for `eagle3 tune`; `cycle`: another tree every step, for tests |
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from eagle3_serving.errors import InputError
from eagle3_serving.serve.gates import Gates
from eagle3_serving.serve.sglang import CHECK, CHOICE, GRAPH_GB, GRAPH_SECONDS, PROFILE, SWITCH
from eagle3_serving.serve.shape import TREES, Shape, parse_trees

DEFAULT_TREES = "0;1,4,3;3,4,6;5,4,12"
# a step's rows cost little there until they are many: 1,4,2 and 3,4,4 verify no more than a chain of one and of three does
DEFAULT_TREES_ON_GPU = "0;1,4,2;1,4,3;3,4,4;3,4,6;5,4,12"
DEFAULT_CHAINS = "0;1,1,2;2,1,3;3,1,4"  # where attention verifies chains alone


@dataclass(frozen=True)
class Settings:
    """`trees` to choose from, fewest tokens first; () where the user's own flags fix one. `profile`: where costs are kept."""

    on: bool = True
    trees: tuple[Shape, ...] = ()
    profile: Path | None = None
    check: bool = True
    choice: str = ""  # "cycle", for tests: every step takes the next tree; "survey", for tuning: some steps of each
    graph_gb: float = 8.0  # bounds of what capturing the trees' graphs takes at start
    graph_seconds: float = 180.0
    gates: Gates = field(default_factory=Gates)


def read_settings(environment: Mapping[str, str] = os.environ) -> Settings:
    """Raises InputError where a value cannot be read."""
    profile = environment.get(PROFILE)
    return Settings(
        on=_switch(environment, SWITCH),
        trees=read_trees(environment.get(TREES, "")),
        profile=Path(profile) if profile else None,
        check=_switch(environment, CHECK),
        choice=_choice(environment),
        graph_gb=_number(environment, GRAPH_GB, Settings.graph_gb),
        graph_seconds=_number(environment, GRAPH_SECONDS, Settings.graph_seconds),
        gates=_gates(environment),
    )


def read_trees(text: str) -> tuple[Shape, ...]:
    """The trees of `EAGLE3_TREES`, fewest tokens first. Raises InputError naming what is wrong."""
    shapes = set(parse_trees(text))
    widths = {shape.top_k for shape in shapes if shape.drafts}
    if len(widths) > 1:
        # what one step's draft hands to the next is top-k wide, and SGLang fixes that width at start
        raise InputError(f"{TREES}: the trees of one server have the same top-k: {text!r}")
    shapes = {shape if shape.drafts else Shape.nothing(*widths) for shape in shapes}
    return tuple(sorted(shapes, key=lambda shape: (shape.tokens, shape.steps)))


def largest(shapes: Sequence[Shape]) -> Shape:
    return max(shapes, key=lambda shape: (shape.tokens, shape.steps))


def _gates(environment: Mapping[str, str]) -> Gates:
    try:
        return Gates.read(environment)
    except InputError as error:
        raise ValueError(str(error)) from None


def _number(environment: Mapping[str, str], name: str, default: float) -> float:
    text = environment.get(name, "")
    try:
        value = float(text or default)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise InputError(f"{name} is {text!r}: a number, at least 0")
    return value


def _choice(environment: Mapping[str, str]) -> str:
    value = environment.get(CHOICE, "")
    if value not in ("", "cycle", "survey"):
        raise InputError(f"{CHOICE} is {value!r}: cycle or survey")
    return value


def _switch(environment: Mapping[str, str], name: str) -> bool:
    value = environment.get(name, "on").lower()
    if value in ("on", "1", "true", "yes", ""):
        return True
    if value in ("off", "0", "false", "no"):
        return False
    raise InputError(f"{name} is {value!r}: on or off")
