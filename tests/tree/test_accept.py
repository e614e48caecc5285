import torch
from hypothesis import given
from hypothesis import strategies as st
from tree_strategies import parents_batches, path_to

from eagle3_serving.tree import PADDING, accept_greedy, tree_layout, with_root


def longest_path(tokens: list[int], parents: list[int], argmax: list[int]) -> list[int]:
    """By trying every row's whole path; rows are numbered with the root as 0."""
    best: list[int] = []
    for row in range(1, len(parents)):
        path = path_to(parents, row)
        if parents[row] == PADDING or path[0] != 0:
            continue
        if all(tokens[r] == argmax[parents[r]] for r in path[1:]) and len(path) - 1 > len(best):
            best = path[1:]
    return best


@given(parents_batches(), st.integers(1, 3), st.data())
def test_acceptance_equals_trying_every_path(batch: list[list[int]], vocab: int, data: st.DataObject) -> None:
    layout = tree_layout(with_root(torch.tensor(batch)))
    rows, depth = len(batch[0]) + 1, len(batch[0])
    ids = st.lists(st.integers(0, vocab - 1), min_size=rows, max_size=rows)
    tokens = [data.draw(ids) for _ in batch]
    argmax = [data.draw(ids) for _ in batch]
    accepted = accept_greedy(torch.tensor(tokens), layout, torch.tensor(argmax), depth)
    for b in range(len(batch)):
        want = longest_path(tokens[b], layout.parents_BN[b].tolist(), argmax[b])
        assert accepted.count_B[b] == len(want)
        assert accepted.rows_BD[b].tolist() == want + [-1] * (depth - len(want))
        assert accepted.bonus_B[b] == argmax[b][want[-1] if want else 0]


def test_an_accepted_sibling_moves_past_the_first() -> None:
    # root -> {5, 6}; 6 -> {7}: the target wants 6 then 7, then 9
    layout = tree_layout(with_root(torch.tensor([[-1, -1, 1]])))
    accepted = accept_greedy(torch.tensor([[4, 5, 6, 7]]), layout, torch.tensor([[6, 0, 7, 9]]), 2)
    assert accepted.rows_BD.tolist() == [[2, 3]]
    assert accepted.bonus_B.tolist() == [9]
