"""The shared tree in SGLang's terms, through the reference of its own kernel: parents, depths and masks must agree."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from eagle3_sglang.layout import expected_gains, parent_list

from eagle3_serving.serve.shape import Shape
from eagle3_serving.tree import Children, expand, pool, positions, root_frontier, select, tree_layout, with_root

STAND_INS = Path(__file__).resolve().parents[2] / "engines" / "sglang_cpu"
BATCH, TOP_K = 3, 4


@pytest.fixture
def kernels() -> Iterator[Any]:
    sys.path.insert(0, str(STAND_INS))
    import sgl_kernel

    yield sgl_kernel
    sys.path.remove(str(STAND_INS))


def grown(steps: int) -> tuple[list[Any], list[Any]]:
    """Candidates and frontiers of random scores."""
    generator = torch.Generator().manual_seed(steps)
    frontier = root_frontier(BATCH)
    depths: list[Any] = []
    frontiers: list[Any] = []
    for _ in range(steps):
        width = frontier.nodes_BK.shape[1]
        log_chance_BKC = torch.rand(BATCH, width, TOP_K, generator=generator).log()
        tokens_BKC = torch.randint(0, 1000, (BATCH, width, TOP_K), generator=generator)
        size = sum(candidates.scores_BC.shape[1] for candidates in depths)
        candidates, frontier = expand(Children(tokens_BKC, log_chance_BKC), frontier, TOP_K, size)
        depths.append(candidates)
        frontiers.append(frontier)
    return depths, frontiers


@pytest.mark.parametrize("steps, tokens", [(1, 3), (1, 5), (2, 6), (3, 6), (5, 12), (4, 32)])
def test_the_kernel_builds_the_tree_that_was_selected(steps: int, tokens: int, kernels: Any) -> None:
    depths, frontiers = grown(steps)
    tree = select(pool(depths), tokens - 1)
    lengths_B = torch.tensor([7, 0, 30])
    mask = torch.zeros(BATCH * tokens * tokens, dtype=torch.bool)
    place, *links = (torch.full((BATCH, tokens), -1) for _ in range(4))
    kernels.build_tree_kernel_efficient_cpu(
        parent_list(frontiers), tree.pool_BN, lengths_B, mask, place.view(-1), *links, TOP_K, steps, tokens, 1
    )
    layout = tree_layout(with_root(tree.parents_BN))
    assert torch.equal(mask.view(BATCH, tokens, tokens), layout.ancestors_BNN)
    assert torch.equal(place, positions(layout, lengths_B))


def test_gains_are_those_of_the_best_nodes_within_the_depth() -> None:
    depths, _ = grown(3)
    shapes = (Shape(0, 4, 1), Shape(1, 4, 3), Shape(3, 4, 6), Shape(5, 4, 12))
    expected_SB = expected_gains(depths, shapes)
    assert expected_SB.shape == (4, BATCH)
    assert torch.equal(expected_SB[0], torch.zeros(BATCH)) and torch.equal(expected_SB[3], torch.zeros(BATCH))
    assert torch.allclose(expected_SB[1], depths[0].scores_BC.exp().topk(2).values.sum(1))
    tree = select(pool(depths), 5)
    assert torch.allclose(expected_SB[2], tree.scores_BN.exp().sum(1))
