"""Every op of the tree can be traced whole: no graph break, hence no wait for the device, and the same result."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from eagle3_serving.tree import (
    Candidates,
    Frontier,
    accept_greedy,
    expand,
    root_frontier,
    select,
    top_children,
    tree_layout,
    with_root,
)
from eagle3_serving.tree.lookup import graft, prompt_lookup
from eagle3_serving.tree.mask import dense_mask, pack_mask
from eagle3_serving.tree.moves import committed_after, kv_moves
from eagle3_serving.tree.share import select_over_batch

Call = tuple[Callable[..., Any], tuple[Any, ...]]


def grow(logits_BKV: torch.Tensor, frontier: Frontier, top_k: int, size: int) -> object:
    return expand(top_children(logits_BKV, top_k), frontier, top_k, size)


def calls(batch: int, size: int, seed: int) -> dict[str, Call]:
    """Each op and arguments for it, of a batch of random trees of `size` nodes."""
    random = torch.Generator().manual_seed(seed)

    def ids(high: int, *shape: int) -> Tensor:
        return torch.randint(high, shape, generator=random)

    parents = (torch.rand(batch, size, generator=random) * torch.arange(1, size + 1)).long() - 1
    candidates = Candidates(ids(3, batch, size), parents, tree_layout(parents).depth_BN * -0.5 - 0.5)
    layout = tree_layout(with_root(parents))
    history, length = ids(2, batch, 4 * size), ids(size, batch) + 3 * size
    lookup = prompt_lookup(history, length, 4, 5)
    start = ids(9, batch)
    tokens, argmax = ids(2, batch, size + 1), ids(2, batch, size + 1)
    acceptance = accept_greedy(tokens, layout, argmax, size)
    return {
        "tree_layout": (tree_layout, (parents, size - 1)),
        "expand": (grow, (torch.randn(batch, 1, 11, generator=random), root_frontier(batch), 4, 0)),
        "select": (select, (candidates, size - 2, start)),
        "select_over_batch": (select_over_batch, (candidates, size)),
        "accept_greedy": (accept_greedy, (tokens, layout, argmax, size)),
        "prompt_lookup": (prompt_lookup, (history, length, 4, 5)),
        "graft": (graft, (candidates, lookup, torch.full((batch, 5), -0.125))),
        "dense_mask": (dense_mask, (layout, start, 2 * size)),
        "pack_mask": (pack_mask, (layout, start, start + 1, 64 * batch)),
        "kv_moves": (kv_moves, (acceptance, start)),
        "committed_after": (committed_after, (acceptance, start)),
    }


def leaves(result: Any) -> list[Tensor]:
    return [result] if isinstance(result, Tensor) else [leaf for part in result for leaf in leaves(part)]


@pytest.mark.parametrize("name", calls(1, 9, 0))
def test_an_op_traced_whole_equals_itself(name: str) -> None:
    torch.compiler.reset()
    op = calls(1, 9, 0)[name][0]
    traced = torch.compile(op, fullgraph=True, backend="aot_eager")
    for batch, size, seed in ((2, 9, 1), (3, 13, 2)):
        arguments = calls(batch, size, seed)[name][1]
        for got, want in zip(leaves(traced(*arguments)), leaves(op(*arguments)), strict=True):
            assert torch.equal(got, want)
