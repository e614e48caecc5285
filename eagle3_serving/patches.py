"""Changes to what belongs to another package: all of them or none."""

from collections.abc import Callable, MutableMapping
from types import TracebackType
from typing import Any, NamedTuple, Self

_ABSENT = object()


class Patches:
    """Context manager: where the block raises, what was changed through it is undone, newest first."""

    def __init__(self) -> None:
        self._undo: list[Callable[[], object]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self.undo()

    def attribute(self, owner: Any, name: str, value: Any) -> None:
        """Set an attribute of a class, a module or an object."""
        before = vars(owner).get(name, _ABSENT)  # not getattr: a static method shall come back as one
        setattr(owner, name, value)
        self._undo.append(lambda: delattr(owner, name) if before is _ABSENT else setattr(owner, name, before))

    def item(self, owner: MutableMapping[Any, Any], key: Any) -> None:
        """An item that is about to be set."""
        before = owner.get(key, _ABSENT)
        self.undone_by(lambda: owner.pop(key, None) if before is _ABSENT else owner.update({key: before}))

    def undone_by(self, undo: Callable[[], object]) -> None:
        """Of a change that was made in another way."""
        self._undo.append(undo)

    def undo(self) -> None:
        while self._undo:
            self._undo.pop()()


class Seam(NamedTuple):
    """A line of a plugin's patch register: the place `target` that is changed, `what` is done there and `why`, the test that
    it is `held` by, and the change of the engine's with which it `ends`."""

    target: str
    what: str
    why: str
    held: str
    ends: str
