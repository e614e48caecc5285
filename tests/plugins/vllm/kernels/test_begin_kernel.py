"""`begin` against `tree_rows`, which is the core's layout."""

import pytest
import torch
from batches import DEVICE, Batch, random_parents, uniform_batch, varlen_batch
from eagle3_vllm.kernels.begin import TreeBuffers, begin
from tree_rows import tree_rows

from eagle3_serving.tree import NO_PARENT, PADDING

SHAPES = ((1, 1), (2, 1), (17, 4), (17, 8), (61, 8), (65, 3), (130, 8))
BATCHES = ((1, 1), (3, 2), (5, 5))


def hold(parents_SK: torch.Tensor, batch: Batch, rows: int, depth: int) -> None:
    size = batch.requests.size
    trees = TreeBuffers.make(size + 1, rows, DEVICE)
    for buffer in (trees.parents_BR, trees.depth_BR, trees.index_BR, trees.prefix_B):
        buffer.fill_(-77)
    trees.mask_BRR.fill_(True)
    tokens = batch.tokens if batch.requests.varlen else size * rows
    positions_T = torch.full((tokens + 3,), -77, device=DEVICE)
    begin(parents_SK.to(DEVICE), batch.requests, batch.seq_lens_B.to(DEVICE), depth, trees, positions_T)
    real = batch.real
    found = TreeBuffers(**{name: value.cpu() for name, value in vars(trees).items()})
    wanted = tree_rows(
        parents_SK[batch.slots_B, : max(rows - 1, 1)],  # the core knows no tree without a node's slot
        batch.rows_B,
        batch.query_start_B1[1:],
        batch.seq_lens_B[:real].long(),
        depth,
        0,
    )
    assert torch.equal(found.parents_BR[:real], wanted.layout.parents_BN[:, :rows])
    assert torch.equal(found.depth_BR[:real], wanted.layout.depth_BN[:, :rows])
    assert torch.equal(found.mask_BRR[:real], wanted.layout.ancestors_BNN[:, :rows, :rows])
    assert torch.equal(found.index_BR[:real], wanted.index_BR[:, :rows])
    assert torch.equal(found.prefix_B[:real].long(), wanted.prefix_B)
    expected_T = torch.full((tokens + 3,), -77)
    expected_T[wanted.index_BR] = wanted.prefix_B[:, None] + wanted.depth_BR
    if not batch.requests.varlen:
        expected_T[real * rows : size * rows] = 0
    assert torch.equal(positions_T.cpu(), expected_T)
    # padding is a root alone
    assert found.prefix_B[real:size].eq(0).all() and found.depth_BR[real:size].eq(0).all()
    assert found.parents_BR[real:size, 0].eq(NO_PARENT).all() and found.parents_BR[real:size, 1:].eq(PADDING).all()
    assert torch.equal(found.mask_BRR[real:size], torch.eye(rows, dtype=torch.bool).expand(size - real, -1, -1))
    # nobody else's buffer is touched
    assert found.prefix_B[size] == -77 and found.parents_BR[size].eq(-77).all() and found.mask_BRR[size].all()


@pytest.mark.parametrize("rows, depth", SHAPES)
def test_a_uniform_batch(rows: int, depth: int) -> None:
    generator = torch.Generator().manual_seed(rows * 10 + depth)
    parents_SK = random_parents(rows + 2, depth, generator)  # wider than what is verified: the rest is dropped
    for size, real in BATCHES:
        for on_device in (False, True):
            hold(parents_SK, uniform_batch(size, real, rows, generator, on_device), rows, depth)


@pytest.mark.parametrize("rows, depth", SHAPES)
def test_a_varlen_batch(rows: int, depth: int) -> None:
    generator = torch.Generator().manual_seed(rows * 10 + depth)
    parents_SK = random_parents(max(rows - 1, 1), depth, generator)
    for size, real in BATCHES:
        for prompts in (False, True):
            hold(parents_SK, varlen_batch(size, real, rows, generator, prompts), rows, depth)


@pytest.mark.parametrize("varlen", [False, True])
def test_for_attention_without_a_mask_a_tree_is_kept_to_its_first_branch(varlen: bool) -> None:
    """A chain whole, a tree up to where it first branches, a request that drafted nothing."""
    kinds = torch.tensor([[-1, 0, 1, 2], [-1, 0, 0, 2], [-1, -1, 0, 1], [PADDING] * 4])
    parents_SK = kinds[torch.arange(64) % 4]
    generator = torch.Generator().manual_seed(1)
    batch = varlen_batch(4, 4, 5, generator, False) if varlen else uniform_batch(4, 4, 5, generator)
    trees = TreeBuffers.make(4, 5, DEVICE)
    positions_T = torch.zeros(4 * 5, dtype=torch.long, device=DEVICE)
    begin(parents_SK.to(DEVICE), batch.requests, batch.seq_lens_B.to(DEVICE), 4, trees, positions_T, chain=True)
    whole = {0: 4, 1: 2, 2: 1, 3: 0}  # nodes that stand in a row, by kind
    for place, slot in enumerate(batch.slots_B.tolist()):
        kept = min(whole[slot % 4], int(batch.rows_B[place]) - 1)
        wanted = [*range(-1, kept), *[PADDING] * (4 - kept)]
        assert trees.parents_BR[place].tolist() == wanted
        assert trees.depth_BR[place].tolist() == [*range(kept + 1), *[0] * (4 - kept)]
        assert torch.equal(
            trees.mask_BRR[place, : kept + 1, : kept + 1].cpu(), torch.ones(kept + 1, kept + 1).tril().bool()
        )


def test_too_few_parents_are_refused() -> None:
    generator = torch.Generator().manual_seed(0)
    batch = uniform_batch(1, 1, 9, generator)
    trees = TreeBuffers.make(1, 9, DEVICE)
    with pytest.raises(ValueError, match="8 nodes a slot"):
        begin(random_parents(7, 2, generator), batch.requests, batch.seq_lens_B, 2, trees, torch.zeros(9))
