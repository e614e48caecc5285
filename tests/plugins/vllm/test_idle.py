"""Rows that wait for the drafter's cache: where two want one slot the later stays."""

import pytest
import torch

pytest.importorskip("vllm")

from eagle3_vllm.idle import last_of_each


def test_later_rows_win_and_rows_without_a_slot_go() -> None:
    slots = torch.tensor([5, 3, -1, 5, 9, 3, -1, 7])
    assert last_of_each(slots).tolist() == [3, 4, 5, 7]


def test_nothing_with_a_slot_leaves_nothing() -> None:
    assert last_of_each(torch.tensor([-1, -1])).tolist() == []
