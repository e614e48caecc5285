"""Tree rows inside a packed pass."""

import pytest
import torch

from eagle3_serving.tree import PADDING

rows_module = pytest.importorskip("eagle3_vllm.attention.rows")


def test_rows_of_a_pass_with_a_tree_a_cut_tree_and_none() -> None:
    parents = torch.tensor([[-1, -1, 0, 2], [-1, 0, 0, 1], [-1, 0, 1, 2]])
    # five rows of the first, three of the second (its last two nodes were not scheduled), a prompt's last row of the third
    rows = rows_module.tree_rows(
        parents, torch.tensor([5, 3, 1]), torch.tensor([5, 8, 20]), torch.tensor([35, 13, 12]), 3, 40
    )
    assert rows.index_BR.tolist() == [[0, 1, 2, 3, 4], [5, 6, 7, 7, 7], [19] * 5]
    assert rows.prefix_B.tolist() == [30, 10, 11]
    assert rows.depth_BR.tolist() == [[0, 1, 1, 2, 3], [0, 1, 2, 2, 2], [0] * 5]
    assert rows.layout.parents_BN[1].tolist() == [-1, 0, 1, PADDING, PADDING]
    assert rows.mask_BRR[0].int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 0, 1, 0, 0],
        [1, 1, 0, 1, 0],
        [1, 1, 0, 1, 1],
    ]
    # what stands for a missing row is its request's last row again, mask and all
    assert torch.equal(rows.mask_BRR[1, 4], rows.mask_BRR[1, 2])
