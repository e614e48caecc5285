"""What is changed in another package is changed whole or not at all, and said once."""

import logging
from types import SimpleNamespace

import pytest

from eagle3_serving.errors import InputError
from eagle3_serving.notice import SAID, in_a_line, say_once
from eagle3_serving.patches import Patches


class Owner:
    @staticmethod
    def static() -> int:
        return 1

    def method(self) -> int:
        return 2


def test_where_the_block_raises_all_is_as_before() -> None:
    before, known = dict(vars(Owner)), {"a": 1}
    with pytest.raises(RuntimeError), Patches() as patches:
        patches.attribute(Owner, "static", staticmethod(lambda: 3))
        patches.attribute(Owner, "static", staticmethod(lambda: 4))
        patches.attribute(Owner, "new", 5)
        for key in "ab":
            patches.item(known, key)
            known[key] = 6
        assert (Owner.static(), Owner.new, known) == (4, 5, {"a": 6, "b": 6})  # type: ignore[attr-defined]
        raise RuntimeError
    assert dict(vars(Owner)) == before and known == {"a": 1}
    assert isinstance(vars(Owner)["static"], staticmethod)


def test_where_it_does_not_the_changes_stay_until_they_are_undone() -> None:
    one = SimpleNamespace(a=1)
    with Patches() as patches:
        patches.attribute(one, "a", 2)
    assert one.a == 2
    patches.undo()
    assert one.a == 1


def test_a_line_is_said_once_by_a_server_and_another_line_too(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(SAID, "")
    for line in ("this", "this", "that", "this"):
        say_once(logging.getLogger("test"), line)
    assert caplog.messages == ["eagle3: this", "eagle3: that"]


def test_an_exception_in_a_line() -> None:
    assert in_a_line(InputError("what, where, way out")) == "what, where, way out"
    assert in_a_line(TypeError("first\n  second")) == "TypeError: first"
    assert in_a_line(KeyError()) == "KeyError"
