"""What is drawn, as plain data: it knows no tensor and no model."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

# refused: its parent was reached, and the target said another token there; unreached: its parent itself fell
Fate = Literal["accepted", "refused", "unreached"]


@dataclass(frozen=True)
class Piece:
    """A token: its id and its text as a person can see it, bytes that are no text included."""

    id: int
    text: str


@dataclass(frozen=True)
class Node:
    """A drafted token. `parent` is a node's index, -1 under the root; `depth` counts from 1.

    Of its parent: `probability` by the drafter (None: the token came out of the text itself), `chance` of acceptance as the
    tree is ranked by it, `target_probability` by the target. `reach` is the product of the chances from the root.
    """

    token: Piece
    parent: int
    depth: int
    probability: float | None
    chance: float
    reach: float
    target_probability: float
    fate: Fate


@dataclass(frozen=True)
class Step:
    """One pass of the target. `tokens` are what it wrote; `root` is the token before them (None: the prompt's own pass).

    `own`, the target's token where the walk ended, has `own_probability` there; `path` are the nodes walked, by index. All
    are empty in a pass that verified nothing. `cut`: the answer ended inside the path.
    """

    tokens: tuple[Piece, ...]
    root: Piece | None = None
    nodes: tuple[Node, ...] = ()
    path: tuple[int, ...] = ()
    own: Piece | None = None
    own_probability: float = 0.0
    cut: bool = False

    def children(self, node: int) -> list[int]:
        """The nodes drafted under one, or under the root (-1), likeliest first."""
        mine = [index for index, other in enumerate(self.nodes) if other.parent == node]
        return sorted(mine, key=lambda index: -self.nodes[index].reach)

    @property
    def end(self) -> int:
        """The node where the walk ended, -1: the root."""
        return self.path[-1] if self.path else -1


@dataclass(frozen=True)
class Story:
    """One prompt, its answer, and the steps that wrote it, the prompt's own pass first."""

    id: str
    prompt: str
    answer: str
    steps: tuple[Step, ...]
    accepted_length: float

    @property
    def tokens(self) -> int:
        return sum(len(step.tokens) for step in self.steps)

    @property
    def best(self) -> int:
        """The step that wrote most tokens, the first of equals."""
        return max(range(len(self.steps)), key=lambda index: (len(self.steps[index].tokens), -index))

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "tokens": self.tokens, "passes": len(self.steps)}


@dataclass(frozen=True)
class About:
    """What a person must know of the run: models by name, how was drafted, `temperature` 0 is greedy."""

    target: str
    drafter: str
    mode: str
    temperature: float
    calibrated: bool
    dtype: str
    version: str
    command: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)
