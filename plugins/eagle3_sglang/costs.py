"""What a step of each tree takes, measured while it serves and kept for the next start."""

import json
import statistics
from collections import deque
from collections.abc import Collection, Iterable
from pathlib import Path

from eagle3_serving.files import write_whole
from eagle3_serving.serve.shape import Shape
from eagle3_serving.tree.budget import Curve

KEPT = 9  # steps whose median counts
PROVEN = 4  # steps after which a cost is known
BETTER = 0.9  # of the median: two such steps in a row, and what was measured before was another moment's


def bucket(batch: int) -> int:
    """Batch sizes that are alike: 1, 2, 3-4, 5-8, 9-16, ..."""
    return (batch - 1).bit_length()


class StepCosts:
    """Seconds of a whole step (draft, verification, the draft's catching up) by batch size and tree.

    A tree's number of verified rows stands for it on a shared `Curve`, so that batch sizes not yet met lie on a line
    between those that were: those at which the tree itself was met, where it was anywhere.
    """

    def __init__(self, shapes: Iterable[Shape]) -> None:
        self.shapes = tuple(shapes)
        self._seen: dict[tuple[int, Shape], deque[float]] = {}
        self._curve = Curve({})
        # a tree's own batch sizes: one tree's seconds at a size passed through would be every tree's there
        self._curves: dict[Shape, Curve] = {}
        self._cold: set[tuple[int, Shape]] = set()  # of which one step was measured: the first meets cold caches

    def add(self, batch: int, shape: Shape, seconds: float) -> None:
        """The first of a kind counts until there is a second."""
        key = batch, shape
        seen = self._seen.setdefault(key, deque(maxlen=KEPT))
        if key in self._cold:
            seen.clear()
            self._cold.remove(key)
        elif not seen:
            self._cold.add(key)
        elif len(seen) > 1 and max(seen[-1], seconds) < BETTER * statistics.median(seen):
            last = seen[-1]
            seen.clear()
            seen.append(last)
        seen.append(seconds)
        self._draw(batch)

    def _draw(self, batch: int) -> None:
        seen = {shape: self._seen[batch, shape] for shape in self.shapes if (batch, shape) in self._seen}
        rows = [(float(batch * shape.tokens), statistics.median(seconds)) for shape, seconds in seen.items()]
        points = tuple(sorted(rows))
        for curve in (self._curve, *(self._curves.setdefault(shape, Curve({})) for shape in seen)):
            curve.points[batch] = points

    def steps(self, batch: int, shape: Shape) -> int:
        """How many steps were measured at batch sizes like this."""
        return sum(len(seen) for (b, s), seen in self._seen.items() if s == shape and bucket(b) == bucket(batch))

    def seconds(self, batch: int, shape: Shape) -> float | None:
        """None before anything was measured."""
        if not self._curve.points:
            return None
        return self._curves.get(shape, self._curve).at(batch, batch * shape.tokens)

    def measured(self, batch: int) -> set[Shape]:
        """The trees with a cost of their own at exactly this batch size."""
        return {shape for size, shape in self._seen if size == batch}

    def keep(self, batches: Collection[int]) -> None:
        """Drop the other batch sizes: passed through as requests ended, they were hardly measured."""
        self._seen = {key: seen for key, seen in self._seen.items() if key[0] in batches}
        self._curve, self._curves = Curve({}), {}
        for batch in {size for size, _ in self._seen}:
            self._draw(batch)

    def save(self, path: Path, about: dict[str, str]) -> None:
        """Beside, then renamed."""
        rows = [[batch, list(shape), statistics.median(seen)] for (batch, shape), seen in sorted(self._seen.items())]
        write_whole(path, json.dumps({"about": about, "seconds": rows}) + "\n")

    def read(self, path: Path, about: dict[str, str]) -> bool:
        """Takes over what another run measured of the same things; false where it measured others. Raises ValueError
        naming the file where it is no profile."""
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
            rows = [(int(batch), Shape(*map(int, shape)), float(seconds)) for batch, shape, seconds in raw["seconds"]]
            same = raw["about"] == about
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path} is not a profile of step costs ({error}): remove it, it is measured again"
            ) from None
        if not same:
            return False
        for batch, shape, seconds in rows:
            if shape in self.shapes and batch > 0 and seconds > 0:
                # known well enough not to be tried again
                self._seen[batch, shape] = deque([seconds] * PROVEN, maxlen=KEPT)
                self._draw(batch)
        return True
