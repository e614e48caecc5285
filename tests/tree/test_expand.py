import itertools
import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eagle3_serving.tree import NO_PARENT, DraftTree, expand, pool, root_frontier, select, top_children


def grow(model_VV: torch.Tensor, batch: int, depth: int, top_k: int, nodes: int) -> DraftTree:
    """A drafter whose next token depends on the last alone: `model_VV[b, last]` are the logits, the root's token is 0."""
    depths, frontier, size = [], root_frontier(batch), 0
    for _ in range(depth):
        logits = model_VV.gather(1, frontier.tokens_BK[..., None].expand(-1, -1, model_VV.shape[2]))
        candidates, frontier = expand(top_children(logits, top_k), frontier, top_k, size)
        depths.append(candidates)
        size += candidates.scores_BC.shape[1]
    return select(pool(depths), nodes)


@settings(max_examples=40)
@given(st.integers(1, 2), st.integers(2, 4), st.integers(1, 4), st.integers(1, 30), st.integers(0, 1000))
def test_tree_equals_brute_force_where_nothing_is_cut(
    batch: int, vocab: int, depth: int, nodes: int, seed: int
) -> None:
    model = torch.randn(batch, vocab, vocab, generator=torch.Generator().manual_seed(seed))
    tree = grow(model, batch, depth, top_k=vocab**depth, nodes=nodes)
    log_probs = model.log_softmax(-1)
    for b in range(batch):
        paths = [path for d in range(1, depth + 1) for path in itertools.product(range(vocab), repeat=d)]

        def score(path: tuple[int, ...], b: int = b) -> float:
            return sum(float(log_probs[b, last, token]) for last, token in zip((0, *path), path, strict=False))

        best = sorted(map(score, paths), reverse=True)[:nodes]
        got = sorted(tree.scores_BN[b].tolist(), reverse=True)
        assert all(math.isclose(a, c, abs_tol=1e-4) for a, c in zip(got, best, strict=True))


@given(st.integers(1, 6), st.integers(0, 1000))
def test_one_child_a_node_is_the_greedy_chain(depth: int, seed: int) -> None:
    model = torch.randn(1, 7, 7, generator=torch.Generator().manual_seed(seed))
    tree = grow(model, 1, depth, top_k=1, nodes=depth)
    last, chain = 0, []
    for _ in range(depth):
        last = int(model[0, last].argmax())
        chain.append(last)
    assert tree.tokens_BN.tolist() == [chain]
    assert tree.parents_BN.tolist() == [list(range(-1, depth - 1))]


def test_frontier_names_its_pool_index_and_parent_slot() -> None:
    model = torch.randn(2, 6, 6, generator=torch.Generator().manual_seed(0))
    first, frontier = expand(top_children(model[:, :1], 3), root_frontier(2), 3, 0)
    assert first.parents_BC.tolist() == [[NO_PARENT] * 3] * 2
    second, deeper = expand(top_children(model[:, :3], 3), frontier, 3, 3)
    both = pool([first, second])
    assert torch.equal(both.tokens_BC.gather(1, deeper.nodes_BK), deeper.tokens_BK)
    parents = frontier.nodes_BK.gather(1, deeper.slots_BK)
    assert torch.equal(both.parents_BC.gather(1, deeper.nodes_BK), parents)


def test_scores_that_are_no_numbers_are_never_drafted() -> None:
    logits = torch.zeros(1, 1, 5)
    logits[0, 0, 2] = float("nan")
    tree = select(expand(top_children(logits, 5), root_frontier(1), 5, 0)[0], 5)
    assert bool((tree.scores_BN == -torch.inf).all())
    assert tree.parents_BN.unique().tolist() == [-2]
