"""The draft tree's arithmetic, batched over requests: it knows tensors, not models."""

from eagle3_serving.tree.accept import Acceptance, accept_greedy
from eagle3_serving.tree.expand import Candidates, Children, Frontier, expand, pool, root_frontier, top_children
from eagle3_serving.tree.grow import Draft, DraftRows, Grow, Keep, grow_draft
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
from eagle3_serving.tree.lookup import Lookup, graft, prompt_lookup
from eagle3_serving.tree.mask import PackedMask, dense_mask, pack_mask, packed_bytes
from eagle3_serving.tree.moves import KVMoves, committed_after, kv_moves
from eagle3_serving.tree.noise import Noise, gumbel
from eagle3_serving.tree.path import likeliest_path
from eagle3_serving.tree.sampling import (
    Draw,
    Proposals,
    SamplingParams,
    accept_sampled,
    coupled_children,
    draw_children,
    sample,
    target_law,
)
from eagle3_serving.tree.select import DraftTree, select
from eagle3_serving.tree.share import select_over_batch, shares

__all__ = [
    "NO_PARENT",
    "PADDING",
    "Acceptance",
    "Candidates",
    "Children",
    "Draft",
    "DraftRows",
    "DraftTree",
    "Draw",
    "Frontier",
    "Grow",
    "KVMoves",
    "Keep",
    "Lookup",
    "Noise",
    "PackedMask",
    "Proposals",
    "SamplingParams",
    "TreeLayout",
    "accept_greedy",
    "accept_sampled",
    "chain_parents",
    "committed_after",
    "coupled_children",
    "dense_mask",
    "draw_children",
    "expand",
    "graft",
    "grow_draft",
    "gumbel",
    "kv_moves",
    "likeliest_path",
    "pack_mask",
    "packed_bytes",
    "paths_of",
    "pool",
    "positions",
    "prompt_lookup",
    "root_frontier",
    "sample",
    "select",
    "select_over_batch",
    "shares",
    "target_law",
    "top_children",
    "tree_layout",
    "with_root",
]
