"""Auxiliary layers: two conventions in the wild, one here (boundaries)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

Convention = Literal["boundary", "output"]
KEY = "eagle_aux_hidden_state_layer_ids"  # of config.json, at the top or inside eagle_config
CONVENTIONS: tuple[Convention, ...] = ("boundary", "output")


def default_aux_layers(num_target_layers: int) -> tuple[int, int, int]:
    """The paper's low, middle and high boundaries: the inputs of layers 2, n // 2 and n - 3."""
    return 2, num_target_layers // 2, num_target_layers - 3


@dataclass(frozen=True)
class AuxLayers:
    """`boundaries` in the order in which `fc` reads them, or None with the `problem` that leaves them open.

    `default`: no ids are written and none need be, the target's depth decides; without it `boundaries` stay None.
    `wrong`: the problem is a fault, and no question.
    """

    boundaries: tuple[int, ...] | None
    convention: Convention
    how: str
    problem: str = ""
    fix: str = ""
    default: bool = False
    wrong: bool = False


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
                f"no auxiliary layer ids for the {count} features that fc reads", "write them into config.json", True
            )
        if n is None:
            return replace(
                _open(
                    "no auxiliary layer ids: the defaults follow from the target's depth",
                    "give --target DIR or --num-target-layers N",
                ),
                default=True,
            )
        return AuxLayers(default_aux_layers(n), "boundary", "the defaults of the target's depth", default=True)
    if len(ids) != count:
        return _open(
            f"{len(ids)} auxiliary layer ids, and fc reads {count} features", "the config is of another drafter", True
        )
    if convention is not None:
        return AuxLayers(_boundaries(ids, convention), convention, "as the caller or the dialect has it")
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


def sglang_boundaries(ids: Sequence[int], num_target_layers: int | None, target_type: str | None) -> tuple[int, ...]:
    """What SGLang's target class captures for nested `ids`: the inverse of `sglang_ids`."""
    as_they_are = (target_type in ("deepseek_v2", "deepseek_v3", "glm4_moe_lite") and ids[0] != 1) or (
        target_type == "gpt_oss" and num_target_layers is not None and max(ids) == num_target_layers
    )
    return tuple(ids) if as_they_are else tuple(i + 1 for i in ids)


def _boundaries(ids: Sequence[int], convention: Convention) -> tuple[int, ...]:
    return tuple(i + 1 for i in ids) if convention == "output" else tuple(ids)


def _open(problem: str, fix: str, wrong: bool = False) -> AuxLayers:
    return AuxLayers(None, "boundary", "", problem, fix, wrong=wrong)
