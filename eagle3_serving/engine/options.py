"""What one generation is asked to do, and what came out."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from eagle3_serving.engine.draft import TreeShape
from eagle3_serving.errors import InputError

Mode = Literal["plain", "chain", "tree"]


@dataclass(frozen=True)
class DecodeOptions:
    """`k` shapes a chain; `nodes`, `depth` and `top_k` a tree. `eos_ids` None means the target's own."""

    max_new_tokens: int = 128
    mode: Mode = "chain"
    k: int = 5
    nodes: int = 60
    depth: int = 8
    top_k: int = 10
    eos_ids: Collection[int] | None = None
    temperature: float = 0.0

    def __post_init__(self) -> None:
        """Raises InputError naming the first option that cannot be served."""
        if self.mode not in ("plain", "chain", "tree"):
            raise InputError(f"mode {self.mode!r} is not known; known are plain, chain, tree")
        for name in ("max_new_tokens", "k", "nodes", "depth", "top_k"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}: it must be at least 1")
        if self.temperature != 0.0:
            raise InputError(
                f"temperature {self.temperature:g}: the embedded engine decodes greedily only; use temperature 0"
            )

    @property
    def shape(self) -> TreeShape:
        return TreeShape.chain(self.k) if self.mode == "chain" else TreeShape(self.nodes, self.depth, self.top_k)


@dataclass(frozen=True)
class Step:
    """The tokens of one target pass; `accepted` of them were drafted (None for a pass that verified nothing)."""

    token_ids: tuple[int, ...]
    accepted: int | None = None


@dataclass(frozen=True)
class Generation:
    """`accepted` draft tokens of each verify pass; `seconds` are wall clock, prefill included.

    No token past the end counts: a draft token accepted after an end token is in no figure here.
    """

    token_ids: tuple[int, ...]
    accepted: tuple[int, ...]
    passes: int
    seconds: float

    @property
    def steps(self) -> int:
        """Target passes that verified a draft."""
        return len(self.accepted)

    @property
    def accepted_length(self) -> float:
        """Tokens a verify pass yields, bonus included; the prefill's own token is not counted. 1.0 without a pass."""
        return (len(self.token_ids) - 1) / self.steps if self.steps else 1.0

    @property
    def accepted_by_position(self) -> tuple[int, ...]:
        """How many verify passes accepted the draft token at depth 1, 2, ..."""
        return tuple(sum(count > place for count in self.accepted) for place in range(max(self.accepted, default=0)))
