import torch
from hypothesis import given
from hypothesis import strategies as st
from tree_strategies import parents_batches

from eagle3_serving.tree import Acceptance, accept_greedy, tree_layout, with_root
from eagle3_serving.tree.moves import committed_after, kv_moves


@st.composite
def accepted(draw: st.DrawFn) -> tuple[Acceptance, torch.Tensor, int]:
    """A real acceptance of a random tree, where its rows begin in the cache, and how many rows there are."""
    batch = draw(parents_batches())
    rows = len(batch[0]) + 1
    ids = st.lists(st.lists(st.integers(0, 1), min_size=rows, max_size=rows), min_size=len(batch), max_size=len(batch))
    tokens, argmax = torch.tensor(draw(ids)), torch.tensor(draw(ids))
    start = draw(st.lists(st.integers(0, 5), min_size=len(batch), max_size=len(batch)))
    layout = tree_layout(with_root(torch.tensor(batch)))
    return accept_greedy(tokens, layout, argmax, rows - 1), torch.tensor(start), rows


@given(accepted())
def test_moves_equal_a_walk_over_the_accepted_rows(case: tuple[Acceptance, torch.Tensor, int]) -> None:
    acceptance, start_B, _ = case
    moves = kv_moves(acceptance, start_B)
    for b, start in enumerate(start_B.tolist()):
        rows = [row for row in acceptance.rows_BD[b].tolist() if row >= 0]
        past = [-1] * (acceptance.rows_BD.shape[1] - len(rows))
        assert moves.source_BD[b].tolist() == [start + row for row in rows] + past
        assert moves.destination_BD[b].tolist() == [start + 1 + d for d in range(len(rows))] + past
        assert int(committed_after(acceptance, start_B)[b]) == start + 1 + len(rows)


@given(accepted())
def test_the_accepted_rows_end_up_in_order_behind_the_root(case: tuple[Acceptance, torch.Tensor, int]) -> None:
    acceptance, start_B, rows = case
    moves = kv_moves(acceptance, start_B)
    spare = int(start_B.max()) + rows
    cache_BS = torch.arange(len(start_B) * (spare + 1)).view(len(start_B), spare + 1)
    # no move goes to the spare row
    source_BD, destination_BD = (place.where(place >= 0, spare) for place in moves)
    at_once_BS = cache_BS.scatter(1, destination_BD, cache_BS.gather(1, source_BD))
    one_by_one_BS = cache_BS.clone()
    for source_B, destination_B in zip(source_BD.T, destination_BD.T, strict=True):
        one_by_one_BS.scatter_(1, destination_B[:, None], one_by_one_BS.gather(1, source_B[:, None]))
    for b, (start, end) in enumerate(zip(start_B.tolist(), committed_after(acceptance, start_B).tolist(), strict=True)):
        kept = [0, *(row for row in acceptance.rows_BD[b].tolist() if row >= 0)]
        want = [*range(start), *(start + row for row in kept)]
        assert at_once_BS[b, :end].tolist() == cache_BS[b, want].tolist()
        assert one_by_one_BS[b, :end].tolist() == cache_BS[b, want].tolist()
