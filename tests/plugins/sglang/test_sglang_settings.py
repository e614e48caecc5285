import pytest
from eagle3_sglang.settings import (
    DEFAULT_CHAINS,
    DEFAULT_TREES,
    DEFAULT_TREES_ON_GPU,
    largest,
    read_settings,
    read_trees,
)

from eagle3_serving.errors import InputError
from eagle3_serving.serve.shape import Shape


def test_trees_are_read_fewest_tokens_first() -> None:
    assert read_trees(" 5,4,12; 0 ;1,4,3;") == (Shape(0, 4, 1), Shape(1, 4, 3), Shape(5, 4, 12))
    assert read_trees("") == ()
    assert len(read_trees(DEFAULT_TREES)) == 4
    assert largest(read_trees(DEFAULT_TREES)) == Shape(5, 4, 12)


@pytest.mark.parametrize(
    "text, why",
    [
        ("3,4", "not steps,top-k,tokens"),
        ("a,4,3", "not steps,top-k,tokens"),
        ("3,4,3", "3 steps of 4 hold 4 to 37 tokens"),
        ("1,2,9", "1 steps of 2 hold 2 to 3 tokens"),
        ("0,4,4", "at least 1"),
        ("1,4,3;1,2,3", "same top-k"),
        ("0", "no tree that drafts"),
    ],
)
def test_what_cannot_be_served_is_named(text: str, why: str) -> None:
    with pytest.raises(InputError, match=why):
        read_trees(text)


def test_switches() -> None:
    assert read_settings({}).on and read_settings({}).check
    assert not read_settings({"EAGLE3_SERVING": "OFF"}).on
    assert not read_settings({"EAGLE3_CHECK": "0"}).check
    with pytest.raises(InputError, match="EAGLE3_SERVING is 'perhaps'"):
        read_settings({"EAGLE3_SERVING": "perhaps"})


def test_bounds_are_numbers() -> None:
    assert read_settings({}).graph_gb > 0 and read_settings({}).graph_seconds > 0
    assert read_settings({"EAGLE3_GRAPH_GB": "1.5", "EAGLE3_GRAPH_SECONDS": "0"}).graph_gb == 1.5
    for wrong in ("much", "-1", "nan", "inf"):
        with pytest.raises(InputError, match=f"EAGLE3_GRAPH_GB is '{wrong}': a number, at least 0"):
            read_settings({"EAGLE3_GRAPH_GB": wrong})


def test_default_trees_hold_plain_decoding_and_as_much_as_a_chain() -> None:
    trees = read_trees(DEFAULT_TREES_ON_GPU)
    assert not trees[0].drafts and set(read_trees(DEFAULT_TREES)) < set(trees)
    assert {Shape(1, 4, 2), Shape(3, 4, 4)} < set(trees)
    assert all(chain == Shape.chain(chain.steps) for chain in read_trees(DEFAULT_CHAINS))
