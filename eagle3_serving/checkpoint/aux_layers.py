"""Auxiliary layers: two conventions in the wild, one here (boundaries)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Convention = Literal["boundary", "output"]
CONVENTIONS: tuple[Convention, ...] = ("boundary", "output")


def default_aux_layers(num_target_layers: int) -> tuple[int, int, int]:
    """The paper's low, middle and high boundaries: the inputs of layers 2, n // 2 and n - 3."""
    return 2, num_target_layers // 2, num_target_layers - 3


@dataclass(frozen=True)
class AuxLayers:
    """`boundaries` in the order in which `fc` reads them, or None with the `problem` that leaves them open."""

    boundaries: tuple[int, ...] | None
    convention: Convention
    how: str
    problem: str = ""
    fix: str = ""


def decode(
    top: Sequence[int] | None,
    nested: Sequence[int] | None,
    count: int,
    num_target_layers: int | None,
    convention: Convention | None = None,
) -> AuxLayers:
    """What the ids of a config.json mean.

    `top` are the ids at the top level, `nested` those inside `eagle_config`, `count` is how many features `fc` reads.
    Certain evidence comes first: the caller's word, both lists together, the defaults of `num_target_layers`.
    """
    ids, place = (tuple(top), "top-level") if top else (tuple(nested or ()), "nested")
    n = num_target_layers
    if not ids:
        if count != 3:
            return _open(
                f"no auxiliary layer ids for the {count} features that fc reads", "write them into config.json"
            )
        if n is None:
            return _open(
                "no auxiliary layer ids: the defaults follow from the target's depth",
                "give --target DIR or --num-target-layers N",
            )
        return AuxLayers(default_aux_layers(n), "boundary", "the defaults of the target's depth")
    if len(ids) != count:
        return _open(
            f"{len(ids)} auxiliary layer ids, and fc reads {count} features", "the config is of another drafter"
        )
    if convention is not None:
        return AuxLayers(_boundaries(ids, convention), convention, "as said on the command line")
    if top and nested and tuple(nested) == tuple(i - 1 for i in ids):
        return AuxLayers(ids, "boundary", "both conventions are written, and agree")
    if n is not None and ids == default_aux_layers(n):
        return AuxLayers(ids, "boundary", "the default boundaries")
    if n is not None and ids == tuple(i - 1 for i in default_aux_layers(n)):
        return AuxLayers(_boundaries(ids, "output"), "output", "the default layer outputs")
    if n is not None and n in ids:
        return AuxLayers(ids, "boundary", f"no layer {n} has an output")
    if top:
        return AuxLayers(ids, "boundary", "top-level ids are boundaries wherever they are read")
    if ids[0] == 1:
        return AuxLayers(_boundaries(ids, "output"), "output", "the first id is 1")
    return _open(
        f"{place} auxiliary layer ids {list(ids)} may count boundaries or layer outputs",
        "say --aux-convention boundary (input of layer k) or output (output of layer k)",
    )


def default_convention() -> Convention:
    """What nested ids mean to the engine that reads them (SGLang): the output of layer k."""
    return "output"


def sglang_ids(boundaries: Sequence[int], num_target_layers: int | None, target_type: str | None) -> list[int] | None:
    """Boundaries in the encoding that SGLang's target class undoes; None where it cannot say them.

    Most classes add one to every id; deepseek_v2 and glm4_moe_lite only where the first id is 1; gpt_oss unless the
    greatest id is the number of layers.
    """
    shifted = [k - 1 for k in boundaries]
    if target_type in ("deepseek_v2", "deepseek_v3", "glm4_moe_lite"):
        return shifted if shifted[0] == 1 else list(boundaries) if boundaries[0] != 1 else None
    if target_type == "gpt_oss" and num_target_layers is not None and max(boundaries) == num_target_layers:
        return list(boundaries)
    if num_target_layers is not None and max(boundaries) >= num_target_layers:
        return None
    return shifted if min(shifted) >= 0 else None


def _boundaries(ids: Sequence[int], convention: Convention) -> tuple[int, ...]:
    return tuple(i + 1 for i in ids) if convention == "output" else tuple(ids)


def _open(problem: str, fix: str) -> AuxLayers:
    return AuxLayers(None, "boundary", "", problem, fix)
