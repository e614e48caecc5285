import torch
from hypothesis import given
from tree_strategies import parents_batches, path_to

from eagle3_serving.tree import PADDING, chain_parents, paths_of, positions, tree_layout, with_root


@given(parents_batches())
def test_mask_is_the_ancestor_relation_and_depth_counts_it(batch: list[list[int]]) -> None:
    layout = tree_layout(torch.tensor(batch))
    for b, parents in enumerate(batch):
        for node in range(len(parents)):
            path = path_to(parents, node)
            assert layout.ancestors_BNN[b, node].nonzero().flatten().tolist() == sorted(path)
            assert layout.depth_BN[b, node] == len(path) - 1


@given(parents_batches())
def test_paths_lead_from_the_top_to_the_node(batch: list[list[int]]) -> None:
    layout = tree_layout(torch.tensor(batch))
    nodes, depth = len(batch[0]), int(layout.depth_BN.max())
    paths = paths_of(layout, torch.arange(nodes).expand(len(batch), nodes), depth)
    for b, parents in enumerate(batch):
        for node in range(nodes):
            path = path_to(parents, node)
            assert paths[b, node].tolist() == path + [-1] * (depth + 1 - len(path))


@given(parents_batches())
def test_telling_the_depth_changes_nothing(batch: list[list[int]]) -> None:
    parents = torch.tensor(batch)
    free = tree_layout(parents)
    told = tree_layout(parents, int(free.depth_BN.max()))
    assert torch.equal(free.ancestors_BNN, told.ancestors_BNN)


@given(parents_batches())
def test_row_space_puts_the_root_above_every_node(batch: list[list[int]]) -> None:
    nodes, rows = tree_layout(torch.tensor(batch)), tree_layout(with_root(torch.tensor(batch)))
    padding = torch.tensor(batch) == PADDING
    assert torch.equal(rows.ancestors_BNN[:, 1:, 1:], nodes.ancestors_BNN)
    assert torch.equal(rows.ancestors_BNN[:, 1:, 0], ~padding)
    assert torch.equal(rows.depth_BN[:, 1:], (nodes.depth_BN + 1).masked_fill(padding, 0))


def test_a_chain_is_causal() -> None:
    layout = tree_layout(with_root(chain_parents(2, 5)))
    assert torch.equal(layout.ancestors_BNN, torch.ones(6, 6, dtype=torch.bool).tril().expand(2, 6, 6))
    assert positions(layout, torch.tensor([7, 30])).tolist() == [list(range(7, 13)), list(range(30, 36))]
