"""What a tree's rows see under a sliding window, row by row; the real backend runs in tests/engines/test_gemma3.py."""

import torch
from eagle3_sglang.windows import tables

PARENTS = [(-1, 0, 0, 1, 1, 3, 2), (-1, 0, 0, 0, 0, 0, 0), (-1, 0, 1, 2, 3, 4, 5)]
LENGTHS = [11, 2, 30]


def ancestors(parents: tuple[int, ...], row: int) -> list[int]:
    path = [row]
    while parents[path[0]] >= 0:
        path.insert(0, parents[path[0]])
    return path


def test_a_row_sees_what_stands_before_its_tree_its_ancestors_and_itself() -> None:
    rows = len(PARENTS[0])
    seen_BRR = torch.tensor([[[i in ancestors(tree, r) for i in range(rows)] for r in range(rows)] for tree in PARENTS])
    before_BS = torch.arange(3 * 40).view(3, 40)
    rows_BR = 1000 + torch.arange(3 * rows).view(3, rows)
    for most in (3, 8, 64):
        table, lengths = tables(before_BS, torch.tensor(LENGTHS), rows_BR, seen_BRR, most)
        for request, (tree, length) in enumerate(zip(PARENTS, LENGTHS, strict=True)):
            for row in range(rows):
                place = request * rows + row
                wanted = [*range(length)[-most:]]
                slots = [40 * request + one for one in wanted]
                slots += [1000 + request * rows + one for one in ancestors(tree, row)]
                assert table[place, : lengths[place]].tolist() == slots
