"""What a dialect is: how its own code reads a checkpoint, and what it can write."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from eagle3_serving.checkpoint.aux_layers import Convention
from eagle3_serving.checkpoint.facts import TargetFacts
from eagle3_serving.checkpoint.neutral import Neutral
from eagle3_serving.checkpoint.source import Json, Source, StoredTensor

OURS = "eagle3_serving"  # the key of config.json under which a conversion says where its output came from
Tensors = dict[str, StoredTensor]


@dataclass(frozen=True)
class Rules:
    """How the dialect's own code reads what config.json leaves open.

    `norm_output`: "feedback" = true feeds the post-norm state to the next step; "either" = it was written for two things
    (see `feedback`). `nested_ids`: what ids inside `eagle_config` count, where the dialect alone decides. `layer_order`: features
    come in the order of layers, whatever the order of the ids. `trains_at_base_10000`: its trainer ignores rope_theta.
    """

    norm_output: Literal["feedback", "either"] = "feedback"
    nested_ids: Convention | None = None
    layer_order: bool = True
    trains_at_base_10000: bool = False


@dataclass(frozen=True)
class Output:
    """What is to be written: config.json and the tensors under the dialect's names."""

    config: Json
    tensors: Tensors


@dataclass(frozen=True)
class Dialect:
    """A way of writing drafters down. `write` and `refusals` are absent where it is only read.

    `refusals` gives one line for each feature that the dialect, or the engine that reads it, cannot express.
    `engines` are those that load what `write` wrote.
    """

    name: str
    title: str
    recognises: Callable[[Source], bool]
    rules: Rules = field(default_factory=Rules)
    refusals: Callable[[Neutral, TargetFacts], list[str]] | None = None
    write: Callable[[Neutral, TargetFacts, str], Output] | None = None
    engines: tuple[str, ...] = ()
    wants_embedding: bool = False
    wants_sorted_vocabulary: bool = False


def provenance(source: Source) -> Mapping[str, object]:
    """What an earlier conversion of ours wrote into config.json; empty where there was none."""
    said = source.config.get(OURS)
    return said if isinstance(said, dict) else {}


def architectures(source: Source) -> tuple[str, ...]:
    said = source.config.get("architectures")
    return tuple(a for a in said if isinstance(a, str)) if isinstance(said, list) else ()


def has_name(source: Source, parts: Iterable[str]) -> bool:
    """Whether any tensor's name contains one of `parts`."""
    wanted = tuple(parts)
    return any(part in name for name in source.tensors for part in wanted)
