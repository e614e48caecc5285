"""A tidy tree: nothing lies over anything, no lines cross, and a subtree looks the same wherever it stands."""

from itertools import pairwise

from hypothesis import given
from show_stories import children_of, parents

from eagle3_serving.show.layout import rows


def by_depth(children: list[list[int]]) -> list[list[int]]:
    """Nodes of each depth in the order of a walk that takes children in order."""
    depths = [[0]]
    while level := [child for node in depths[-1] for child in children[node]]:
        depths.append(level)
    return depths


@given(parents())
def test_no_two_nodes_share_a_place_and_their_order_is_the_trees(tree: list[int]) -> None:
    children = children_of(tree)
    row = rows(children)
    for level in by_depth(children):
        assert all(row[above] < row[below] for above, below in pairwise(level))


@given(parents())
def test_no_two_lines_cross(tree: list[int]) -> None:
    children = children_of(tree)
    row = rows(children)
    for level in by_depth(children):
        lines = [(row[node], row[child]) for node in level for child in children[node]]
        assert all(a <= c and b < d for (a, b), (c, d) in pairwise(lines))


@given(parents())
def test_a_parent_stands_beside_its_first_child_and_no_row_is_wasted(tree: list[int]) -> None:
    children = children_of(tree)
    row = rows(children)
    assert row[0] == 0
    assert all(row[node] == row[below[0]] for node, below in enumerate(children) if below)
    leaves = sum(not below for below in children)
    assert max(row) < leaves
    # something keeps every subtree from moving up: a place right above it is taken
    taken = {(depth, row[node]) for depth, level in enumerate(by_depth(children)) for node in level}
    depth_of = {node: depth for depth, level in enumerate(by_depth(children)) for node in level}
    for below in children:
        for child in below[1:]:
            inside = [child]
            for node in inside:
                inside.extend(children[node])
            assert any((depth_of[node], row[node] - 1) in taken for node in inside)


@given(parents(20))
def test_a_subtree_is_drawn_alike_wherever_it_stands(tree: list[int]) -> None:
    alone = rows(children_of(tree))
    # twice under a new root: the second copy hangs below the first
    size = len(tree) + 1
    twice = [-1, *(parent + 1 for parent in tree), -1, *(parent + 1 + size for parent in tree)]
    row = rows(children_of(twice))
    assert [row[1 + node] - row[1] for node in range(size)] == alone
    assert [row[1 + size + node] - row[1 + size] for node in range(size)] == alone


def test_a_long_chain_is_one_row() -> None:
    assert set(rows(children_of(list(range(-1, 1000))))) == {0}
