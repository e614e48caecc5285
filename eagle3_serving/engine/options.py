"""What a generation is asked to do, and what came out."""

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Literal, get_args

from eagle3_serving.dtypes import FP32_MAX
from eagle3_serving.engine.draft import TreeShape
from eagle3_serving.errors import InputError

Mode = Literal["plain", "chain", "tree", "auto"]
Proposing = Literal["coupled", "top", "drawn"]


@dataclass(frozen=True)
class Sampling:
    """Temperature 0 is greedy. `top_k` 0, `top_p` 1 and `min_p` 0 are off. `seed` None draws anew every time."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int | None = 0

    def __post_init__(self) -> None:
        """Raises InputError naming the first value out of range."""
        if not 0.0 <= self.temperature <= FP32_MAX:
            raise InputError(f"temperature is {self.temperature}: it must be finite (in fp32) and not negative")
        if self.top_k < 0:
            raise InputError(f"top_k is {self.top_k}: it must be 0 (off) or more")
        if not 0.0 < self.top_p <= 1.0:
            raise InputError(f"top_p is {self.top_p}: it must be above 0 and at most 1")
        if not 0.0 <= self.min_p <= 1.0:
            raise InputError(f"min_p is {self.min_p}: it must be between 0 and 1")


@dataclass(frozen=True)
class DecodeOptions:
    """`k` shapes a chain; `nodes`, `depth` and `top_k` a tree, and bound what auto may choose.

    `proposals` at a temperature: what the drafter takes to be the next draw, by the noise that decides it; its most probable
    tokens; or draws from its law (a tree of fixed shape then).
    `lookup`: what followed the last tokens earlier in the text joins a tree. `calibrated`: rank by the measured chance
    of acceptance, where the drafter has a calibration. `eos_ids` None means the target's own.
    """

    max_new_tokens: int = 128
    mode: Mode = "chain"
    k: int = 5
    nodes: int = 60
    depth: int = 8
    top_k: int = 10
    eos_ids: Collection[int] | None = None
    sampling: Sampling = field(default_factory=Sampling)
    proposals: Proposing = "coupled"
    lookup: bool = False
    calibrated: bool = True

    def __post_init__(self) -> None:
        """Raises InputError naming the first option that cannot be served."""
        if self.mode not in get_args(Mode):
            raise InputError(f"mode {self.mode!r} is not known; known are {', '.join(get_args(Mode))}")
        if self.proposals not in get_args(Proposing):
            raise InputError(f"proposals {self.proposals!r} are not known; known are {', '.join(get_args(Proposing))}")
        for name in ("max_new_tokens", "k", "nodes", "depth", "top_k"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}: it must be at least 1")
        if self.proposals == "drawn" and self.mode == "auto":
            raise InputError(
                "mode auto chooses its tree by what was drafted: use proposals coupled or top, or mode chain or tree"
            )
        if self.lookup and (self.proposals == "drawn" or self.mode == "chain"):
            raise InputError(
                "lookup joins no drawn tree, and no chain: use mode tree or auto and proposals coupled or top"
            )

    @property
    def shape(self) -> TreeShape:
        return TreeShape.chain(self.k) if self.mode == "chain" else TreeShape(self.nodes, self.depth, self.top_k)


@dataclass(frozen=True)
class Step:
    """The tokens of one target pass for one request; `accepted` of the `nodes` drafted ones are among them.

    `accepted` is None for a pass that verified nothing. `seconds` since the run began.
    """

    token_ids: tuple[int, ...]
    accepted: int | None = None
    nodes: int = 0
    seconds: float = 0.0
    last: bool = False


@dataclass(frozen=True)
class Generation:
    """`accepted` draft tokens of each verify pass; `seconds` are wall clock from the run's start to the last token.

    No token past the end counts: a draft token accepted after an end token is in no figure here.
    """

    token_ids: tuple[int, ...]
    accepted: tuple[int, ...]
    passes: int
    seconds: float
    nodes: int = 0

    @property
    def steps(self) -> int:
        """Target passes that verified a draft."""
        return len(self.accepted)

    @property
    def accepted_length(self) -> float:
        """Tokens a target pass yields, bonus included; the prefill's own token is not counted. 1.0 without a pass."""
        return (len(self.token_ids) - 1) / (self.passes - 1) if self.passes > 1 else 1.0

    @property
    def accepted_by_position(self) -> tuple[int, ...]:
        """How many verify passes accepted the draft token at depth 1, 2, ..."""
        return tuple(sum(count > place for count in self.accepted) for place in range(max(self.accepted, default=0)))
