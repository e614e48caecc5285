"""A tidy tree, left to right: a depth is a column, and subtrees are packed as closely as their outlines allow.

Reingold and Tilford, "Tidier Drawings of Trees" (1981), with each parent beside its first child rather than amid all of
them: so the likeliest path is a straight line.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass
class _Outline:
    """First and last row taken, by depth below a subtree's top, which stands in row 0."""

    first: list[int]
    last: list[int]


def rows(children: Sequence[Sequence[int]], root: int = 0) -> list[int]:
    """The row of every node: `children[n]` are node n's, in order. Row 0 is the topmost.

    No two nodes of one depth share a row, siblings and cousins keep their order at every depth (so that no two edges
    cross), and a subtree is drawn alike wherever it stands.
    """
    order = [root]
    for node in order:
        order.extend(children[node])
    outlines: dict[int, _Outline] = {}
    below_parent = [0] * len(children)
    for node in reversed(order):
        whole = _Outline([0], [0])
        for child in children[node]:
            part = outlines.pop(child)
            shared = range(min(len(part.first), len(whole.last) - 1))
            down = max((whole.last[at + 1] + 1 - part.first[at] for at in shared), default=0)
            below_parent[child] = down
            for at, (first, last) in enumerate(zip(part.first, part.last, strict=True), 1):
                if at == len(whole.last):
                    whole.first.append(first + down)
                    whole.last.append(last + down)
                else:
                    whole.last[at] = last + down
        outlines[node] = whole
    row = [0] * len(children)
    for node in order:
        for child in children[node]:
            row[child] = row[node] + below_parent[child]
    return row
