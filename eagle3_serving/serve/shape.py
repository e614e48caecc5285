"""A draft tree as SGLang counts it."""

from typing import NamedTuple


class Shape(NamedTuple):
    """Draft `steps` (the tree's depth), `top_k` children a node, verified `tokens`, the root included.

    No steps and one token is a plain decoding step.
    """

    steps: int
    top_k: int
    tokens: int

    @classmethod
    def chain(cls, k: int) -> "Shape":
        return cls(k, 1, k + 1)

    @classmethod
    def nothing(cls, top_k: int) -> "Shape":
        return cls(0, top_k, 1)

    @property
    def drafts(self) -> bool:
        return self.steps > 0

    def __str__(self) -> str:
        return f"{self.steps},{self.top_k},{self.tokens}"

    def wrong(self) -> str:
        """What is wrong with it in one line, "" where nothing is."""
        if self == Shape.nothing(self.top_k) and self.top_k > 0:
            return ""
        if min(self) < 1:
            return f"tree {self}: steps, top-k and tokens are each at least 1"
        most = 1 + self.top_k + (self.steps - 1) * self.top_k**2
        if not self.steps < self.tokens <= most:
            return f"tree {self}: {self.steps} steps of {self.top_k} hold {self.steps + 1} to {most} tokens"
        return ""
