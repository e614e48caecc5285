"""How a user writes trees; what each engine asks of them beyond that is tested with its plugin."""

import pytest

from eagle3_serving.errors import InputError
from eagle3_serving.serve.shape import Shape, parse_trees


def test_trees_are_read_as_they_stand() -> None:
    assert parse_trees(" 5,4,12; 0 ;1,4,3;") == [Shape(5, 4, 12), Shape.nothing(1), Shape(1, 4, 3)]
    assert parse_trees("") == parse_trees(" ; ") == []


@pytest.mark.parametrize("text", ["3,4", "a,4,3", "3,4,3", "1,2,9", "-1,4,4", "0", "0;0"])
def test_a_wrong_one_is_named(text: str) -> None:
    with pytest.raises(InputError, match="^EAGLE3_TREES") as wrong:
        parse_trees(text)
    assert text in str(wrong.value)
