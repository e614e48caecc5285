"""Attention of a verify pass: over a long prefix and a small tree, apart and merged. It knows tensors, not models."""

from eagle3_serving.attention.state import AttentionState, attend, merge
from eagle3_serving.attention.tree import Prefix, prefix_attention, tree_attention, tree_block

__all__ = ["AttentionState", "Prefix", "attend", "merge", "prefix_attention", "tree_attention", "tree_block"]
