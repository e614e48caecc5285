import math

import torch
from hypothesis import given
from hypothesis import strategies as st
from tree_strategies import pools

from eagle3_serving.tree import NO_PARENT, PADDING, Candidates, select
from eagle3_serving.tree.share import select_over_batch, shares

budgets = st.integers(1, 50)


def best_of_all(pool: Candidates, nodes: int) -> list[tuple[float, int, int]]:
    """(score, request, candidate) of the best candidates of the batch, by sorting them all."""
    everyone = [(score, b, c) for b, row in enumerate(pool.scores_BC.tolist()) for c, score in enumerate(row)]
    return sorted((one for one in everyone if one[0] > -math.inf), key=lambda one: (-one[0], *one[1:]))[:nodes]


@given(pools(), budgets)
def test_shares_count_the_best_of_the_batch(pool: Candidates, nodes: int) -> None:
    best = best_of_all(pool, nodes)
    got = shares(pool, nodes)
    assert got.tolist() == [sum(b == owner for _, owner, _ in best) for b in range(pool.scores_BC.shape[0])]
    assert got.dtype == torch.long and int(got.sum()) <= nodes


@given(pools(), budgets)
def test_a_batch_selection_holds_the_best_candidates(pool: Candidates, nodes: int) -> None:
    tree = select_over_batch(pool, nodes)
    best = best_of_all(pool, nodes)
    assert tree.parents_BN.shape[1] == min(nodes, pool.scores_BC.shape[1])
    assert int((tree.parents_BN != PADDING).sum()) == len(best) <= nodes
    assert math.isclose(float(tree.scores_BN.exp().sum()), sum(math.exp(one[0]) for one in best), rel_tol=1e-5)
    for b, (tokens, parents) in enumerate(zip(tree.tokens_BN.tolist(), tree.parents_BN.tolist(), strict=True)):
        mine = sorted(c for _, owner, c in best if owner == b)
        # tokens are all different, so they name the candidates
        assert tokens[: len(mine)] == pool.tokens_BC[b, mine].tolist()
        assert parents[len(mine) :] == [PADDING] * (len(parents) - len(mine))


@given(pools(), budgets, st.integers(1, 24))
def test_every_share_is_connected_and_at_most_the_width(pool: Candidates, nodes: int, width: int) -> None:
    tree = select_over_batch(pool, nodes, width)
    assert tree.parents_BN.shape[1] == min(width, pool.scores_BC.shape[1])
    for b, share in enumerate(shares(pool, nodes).tolist()):
        pool_tokens, tokens = pool.tokens_BC[b].tolist(), tree.tokens_BN[b].tolist()
        live = [node for node, parent in enumerate(tree.parents_BN[b].tolist()) if parent != PADDING]
        assert len(live) == min(share, width)
        for node in live:
            old_parent = int(pool.parents_BC[b, pool_tokens.index(tokens[node])])
            parent = int(tree.parents_BN[b, node])
            assert parent < node
            assert tokens[parent] == pool_tokens[old_parent] if old_parent >= 0 else parent == NO_PARENT


@given(pools(), budgets)
def test_a_batch_of_one_is_select(pool: Candidates, nodes: int) -> None:
    alone = Candidates(*(part[:1] for part in pool))
    for got, want in zip(select_over_batch(alone, nodes), select(alone, nodes), strict=True):
        assert torch.equal(got, want)


def test_ties_go_to_the_earlier_request_and_stay_connected() -> None:
    chain = torch.arange(-1, 31).expand(2, 32)
    pool = Candidates(torch.arange(64).view(2, 32), chain, torch.zeros(2, 32))
    for nodes in range(1, 65):
        assert shares(pool, nodes).tolist() == [min(nodes, 32), max(nodes - 32, 0)]
        tree = select_over_batch(pool, nodes)
        for b, share in enumerate(shares(pool, nodes).tolist()):
            assert tree.parents_BN[b, :share].tolist() == list(range(-1, share - 1))
