import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from tree_strategies import parents_batches, path_to

from eagle3_serving.tree import PADDING, TreeLayout, tree_layout, with_root
from eagle3_serving.tree.mask import dense_mask, pack_mask, packed_bytes


@st.composite
def verified(draw: st.DrawFn) -> tuple[TreeLayout, list[int], list[int]]:
    """A layout in row space, how many keys are committed, and how many rows of each request are verified."""
    batch = draw(parents_batches())
    committed = draw(st.lists(st.integers(0, 20), min_size=len(batch), max_size=len(batch)))
    rows = draw(st.lists(st.integers(0, len(batch[0]) + 1), min_size=len(batch), max_size=len(batch)))
    return tree_layout(with_root(torch.tensor(batch))), committed, rows


def seen(parents: list[int], committed: int, row: int, width: int) -> list[bool]:
    """The keys a row sees, by walking up from it."""
    keys = {*range(committed), *(committed + above for above in path_to(parents, row))}
    return [key in keys for key in range(width)]


@given(verified(), st.integers(1, 40))
def test_a_row_sees_the_committed_keys_and_its_own_path(
    case: tuple[TreeLayout, list[int], list[int]], width: int
) -> None:
    layout, committed, _ = case
    mask = dense_mask(layout, torch.tensor(committed), width)
    for b, parents in enumerate(layout.parents_BN.tolist()):
        assert mask[b].tolist() == [seen(parents, committed[b], row, width) for row in range(len(parents))]


def test_a_padding_row_sees_itself_of_the_rows() -> None:
    layout = tree_layout(with_root(torch.tensor([[-1, PADDING, PADDING]])))
    mask = dense_mask(layout, torch.tensor([1]), 5).long().tolist()
    assert mask == [[[1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 0, 0, 1, 0], [1, 0, 0, 0, 1]]]


@given(verified(), st.integers(0, 3))
def test_packed_bits_are_the_dense_mask(case: tuple[TreeLayout, list[int], list[int]], spare: int) -> None:
    layout, committed, rows = case
    sizes = [packed_bytes(keys, count) for keys, count in zip(committed, rows, strict=True)]
    packed = pack_mask(layout, torch.tensor(committed), torch.tensor(rows), sum(sizes) + spare)
    assert packed.bytes_T.dtype == torch.uint8 and packed.bytes_T.shape == (sum(sizes) + spare,)
    assert packed.indptr_B1.tolist() == [sum(sizes[:b]) for b in range(len(sizes) + 1)]
    assert not packed.bytes_T[sum(sizes) :].any()
    for b, (keys, count) in enumerate(zip(committed, rows, strict=True)):
        begin, end = packed.indptr_B1[b : b + 2].tolist()
        bits = np.unpackbits(packed.bytes_T[begin:end].numpy(), bitorder="little").astype(bool)
        dense = dense_mask(layout, torch.tensor(committed), keys + count)[b, :count].flatten().numpy()
        assert np.array_equal(bits[: dense.size], dense)
        assert not bits[dense.size :].any() and len(bits) - dense.size < 8


def test_bits_lie_where_the_kernel_reads_them() -> None:
    # two rows over 3 + 2 keys: 11110 11111 -> 0b11101111, 0b11; the second request begins at a whole byte
    layout = tree_layout(with_root(torch.tensor([[-1], [-1], [-1]])))
    # the third has no keys at all: an unused slot of a batch
    packed = pack_mask(layout, torch.tensor([3, 0, 0]), torch.tensor([2, 1, 0]), 4)
    assert packed.bytes_T.tolist() == [0b11101111, 0b11, 1, 0]
    assert packed.indptr_B1.tolist() == [0, 2, 3, 3]
