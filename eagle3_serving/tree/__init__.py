"""The draft tree's arithmetic, batched over requests: it knows tensors, not models."""

from eagle3_serving.tree.accept import Acceptance, accept_greedy
from eagle3_serving.tree.expand import Candidates, Frontier, expand, pool, root_frontier
from eagle3_serving.tree.layout import (
    NO_PARENT,
    PADDING,
    TreeLayout,
    chain_parents,
    paths_of,
    positions,
    tree_layout,
    with_root,
)
from eagle3_serving.tree.select import DraftTree, select

__all__ = [
    "NO_PARENT",
    "PADDING",
    "Acceptance",
    "Candidates",
    "DraftTree",
    "Frontier",
    "TreeLayout",
    "accept_greedy",
    "chain_parents",
    "expand",
    "paths_of",
    "pool",
    "positions",
    "root_frontier",
    "select",
    "tree_layout",
    "with_root",
]
