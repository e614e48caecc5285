import torch

from eagle3_serving.tree import PADDING, Candidates, likeliest_path, select

INF = float("inf")


def pool() -> Candidates:
    """Root children a (0.6), b (0.3); children of b: c (0.29), d (0.1); of a: e (0.2), f (0.1); of e: g (0.05)."""
    scores = [0.6, 0.3, 0.29, 0.1, 0.2, 0.1, 0.05]
    return Candidates(
        torch.tensor([[10, 11, 12, 13, 14, 15, 16]]),
        torch.tensor([[-1, -1, 1, 1, 0, 0, 4]]),
        torch.tensor([scores]).log(),
    )


def test_the_path_follows_the_best_child_even_where_another_scores_higher() -> None:
    kept = likeliest_path(pool(), 3, torch.tensor([True]))
    assert (kept.scores_BC[0] > -INF).nonzero().flatten().tolist() == [0, 4, 6]
    tree = select(kept, 5)
    assert tree.tokens_BN[0].tolist() == [10, 14, 16, 0, 0]
    assert tree.parents_BN[0].tolist() == [-1, 0, 1, PADDING, PADDING]


def test_it_ends_at_the_depth_or_where_there_is_no_child() -> None:
    assert (likeliest_path(pool(), 2, torch.tensor([True])).scores_BC > -INF).sum() == 2
    assert (likeliest_path(pool(), 9, torch.tensor([True])).scores_BC > -INF).sum() == 3


def test_other_requests_keep_their_whole_pool() -> None:
    both = Candidates(*(x.repeat(2, 1) for x in pool()))
    kept = likeliest_path(both, 3, torch.tensor([False, True]))
    assert torch.equal(kept.scores_BC[0], both.scores_BC[0])
    assert (kept.scores_BC[1] > -INF).sum() == 3
