import torch
from hypothesis import given
from hypothesis import strategies as st
from tree_strategies import pools

from eagle3_serving.tree import NO_PARENT, PADDING, Candidates, select


@given(pools(), st.integers(1, 24))
def test_selection_is_connected_and_ordered(pool: Candidates, nodes: int) -> None:
    tree = select(pool, nodes)
    for b, parents in enumerate(tree.parents_BN.tolist()):
        tokens, pool_tokens = tree.tokens_BN[b].tolist(), pool.tokens_BC[b].tolist()
        for node, parent in enumerate(parents):
            if parent == PADDING:
                assert parents[node:] == [PADDING] * (len(parents) - node)
                break
            assert NO_PARENT <= parent < node
            old_parent = int(pool.parents_BC[b, pool_tokens.index(tokens[node])])
            assert (parent == NO_PARENT) == (old_parent == NO_PARENT)
            if parent >= 0:
                assert tokens[parent] == pool_tokens[old_parent]


@given(pools(), st.integers(1, 24))
def test_selection_has_the_best_scores(pool: Candidates, nodes: int) -> None:
    tree = select(pool, nodes)
    for b, scores in enumerate(pool.scores_BC.tolist()):
        best = sorted(scores, reverse=True)[:nodes]
        assert sorted(tree.scores_BN[b].tolist(), reverse=True) == best
        assert int((tree.parents_BN[b] != PADDING).sum()) == sum(score > -torch.inf for score in best)


@given(pools(), st.integers(1, 24), st.data())
def test_a_budget_equals_selecting_fewer(pool: Candidates, nodes: int, data: st.DataObject) -> None:
    batch = pool.scores_BC.shape[0]
    budgets = data.draw(st.lists(st.integers(1, 24), min_size=batch, max_size=batch))
    tree = select(pool, nodes, torch.tensor(budgets))
    for b, budget in enumerate(budgets):
        alone = select(Candidates(*(part[b : b + 1] for part in pool)), min(nodes, budget))
        kept = alone.parents_BN.shape[1]
        assert torch.equal(tree.parents_BN[b, :kept], alone.parents_BN[0])
        assert torch.equal(tree.tokens_BN[b, :kept], alone.tokens_BN[0])
        assert bool((tree.parents_BN[b, kept:] == PADDING).all())


def test_a_child_as_likely_as_its_parent_never_stands_alone() -> None:
    pool = Candidates(torch.arange(64)[None], torch.arange(-1, 63)[None], torch.zeros(1, 64))
    for nodes in range(1, 64):
        assert select(pool, nodes).parents_BN.tolist() == [list(range(-1, nodes - 1))]
