"""Every picture and every text that is made from raw files, by name."""

from collections.abc import Callable, Sequence
from typing import TypeVar

Made = TypeVar("Made", bound=bytes | str)
PICTURES: dict[str, Callable[[], bytes]] = {}
"""File name under benchmarks/results -> its PNG or HTML bytes."""
TEXTS: dict[str, Callable[[], str]] = {}
"""Name between a page's markers -> Markdown."""


def picture(name: str) -> Callable[[Callable[[], bytes]], Callable[[], bytes]]:
    return _into(PICTURES, name)


def text(name: str) -> Callable[[Callable[[], str]], Callable[[], str]]:
    return _into(TEXTS, name)


def _into(catalogue: dict[str, Callable[[], Made]], name: str) -> Callable[[Callable[[], Made]], Callable[[], Made]]:
    def add(make: Callable[[], Made]) -> Callable[[], Made]:
        if name in catalogue:
            raise ValueError(f"two make {name}")
        catalogue[name] = make
        return make

    return add


def markdown(headings: Sequence[object], rows: Sequence[Sequence[object]]) -> str:
    """A table."""
    made = [headings, ["---"] * len(headings), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in row) + " |" for row in made)


def times(ratio: float, spread: Sequence[float] | None = None) -> str:
    """`1.30x`, with `(1.20-1.42)` where the rounds differ."""
    if spread is None or f"{spread[0]:.2f}" == f"{spread[1]:.2f}":
        return f"{ratio:.2f}x"
    return f"{ratio:.2f}x ({spread[0]:.2f}-{spread[1]:.2f})"


def listed(values: Sequence[str]) -> str:
    """`a, b and c`."""
    return " and ".join([", ".join(values[:-1]), values[-1]]) if len(values) > 1 else values[0]
