import torch
from eagle3_sglang.catch_up import Backlog


def missed(backlog: Backlog, requests: list[str], step: int) -> None:
    rows = len(requests)
    backlog.add(requests, torch.full((rows, 4), float(step)), torch.arange(rows) + 10 * step)


def test_every_row_is_taken_in_once_where_it_belongs() -> None:
    backlog = Backlog()
    missed(backlog, ["a", "b"], 0)
    missed(backlog, ["b", "c", "a"], 1)  # c joins, and the order changes
    missed(backlog, ["b", "c"], 2)  # a is gone
    first, second = backlog.plans(["c", "b"], width=2)
    assert first.back_B.tolist() == [2, 3] and second.back_B.tolist() == [0, 1]
    tokens_R = backlog.tokens()
    assert tokens_R[first.rows_BW].tolist() == [[11, 21], [1, 10]]
    # c has no more: its rows stand past its end; b has one
    assert tokens_R[second.rows_BW[1, 0]] == 20
    assert backlog.features()[first.rows_BW][0, :, 0].tolist() == [1.0, 2.0]


def test_a_request_that_missed_nothing_needs_no_pass() -> None:
    backlog = Backlog()
    missed(backlog, ["a"], 0)
    assert backlog.plans(["new"]) == []
    backlog.clear()
    assert len(backlog) == 0 and backlog.plans(["a"]) == []


def test_memory_is_bounded_and_the_latest_stays() -> None:
    backlog = Backlog(most_bytes=3 * 2 * 4 * 4)
    for step in range(10):
        missed(backlog, ["a", "b"], step)
    assert len(backlog) == 3
    [plan] = backlog.plans(["a"])
    assert plan.back_B.tolist() == [3]
    assert backlog.features()[plan.rows_BW[0, :3]][:, 0].tolist() == [7.0, 8.0, 9.0]
