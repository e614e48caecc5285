"""A draft tree as SGLang counts it, and how a user writes some of them."""

from typing import NamedTuple

from eagle3_serving.errors import InputError

TREES = "EAGLE3_TREES"  # the trees to choose from, as "0;1,4,3;5,4,8"


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


def parse_trees(text: str) -> list[Shape]:
    """`0;1,4,3;5,4,8`: trees as steps,top-k,tokens, in the order given; `0` is a plain decoding step, of top-k 1. Raises
    InputError naming a wrong one, or where none drafts."""
    shapes = [_parse_tree(part) for part in map(str.strip, text.split(";")) if part]
    if shapes and not any(shape.drafts for shape in shapes):
        raise InputError(f"{TREES} holds no tree that drafts: {text!r}")
    return shapes


def _parse_tree(part: str) -> Shape:
    if part == "0":
        return Shape.nothing(1)
    try:
        steps, top_k, tokens = map(int, part.split(","))
    except ValueError:
        raise InputError(f"{TREES}: {part!r} is not steps,top-k,tokens") from None
    if wrong := Shape(steps, top_k, tokens).wrong():
        raise InputError(f"{TREES}: {wrong}")
    return Shape(steps, top_k, tokens)
