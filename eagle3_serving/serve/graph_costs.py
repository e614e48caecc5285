"""What a step costs where CUDA graphs run: the graphs' own seconds, measured at start, and what serving adds to them."""

import bisect
import statistics
from collections.abc import Iterable, Mapping

from eagle3_serving.serve.shape import Shape


class GraphCosts:
    """A graph serves every batch up to its own size, so costs are a staircase. The host's launches and whatever else serving
    adds are learnt from the trees that serve, so that a tree is judged before it ever did."""

    def __init__(self, sizes: Iterable[int], alone: Mapping[Shape, Mapping[int, float]]) -> None:
        """`sizes` in requests that graphs were captured for. `alone`: each tree's graphs by size, in any unit of time; sizes
        between those that were measured lie on a line."""
        self.sizes = tuple(sorted(sizes))
        self.measured = {shape: dict(each) for shape, each in alone.items() if each}
        self._between: dict[tuple[int, Shape], float] = {}
        self._served: dict[tuple[int, Shape], float] = {}
        # by whether a step drafts, then by size and tree
        self._added: dict[bool, dict[int, dict[Shape, float]]] = {}

    def __contains__(self, shape: Shape) -> bool:
        return shape in self.measured

    def size(self, batch: int) -> int:
        """The size that a graph was captured at for this batch; the batch's own where no graph holds it."""
        place = bisect.bisect_left(self.sizes, batch)
        return self.sizes[place] if place < len(self.sizes) else batch

    def report_served(self, size: int, shape: Shape, cost: float) -> None:
        """A whole step as it was measured while serving; the last one told counts."""
        self._served[size, shape] = cost
        if shape in self:
            self._added.setdefault(shape.drafts, {}).setdefault(size, {})[shape] = cost - self.alone(size, shape)

    def forget_served(self) -> None:
        self._served, self._added = {}, {}

    def of(self, size: int, shape: Shape) -> float:
        """Of a whole step: as it was served, else as it is expected."""
        served = self._served.get((size, shape))
        return self.expected(size, shape) if served is None else served

    def expected(self, size: int, shape: Shape) -> float:
        """The graphs' own, and what serving adds to such."""
        # a draft costs launches of its own, which plain decoding never served is not to be charged with: it would never be tried
        added = self._added.get(shape.drafts) or (self._added.get(False) if shape.drafts else None)
        if not added:
            return self.alone(size, shape)
        nearest = min(added, key=lambda other: abs(other - size))  # its texts are most like these
        return self.alone(size, shape) + max(0.0, statistics.median(added[nearest].values()))

    def alone(self, size: int, shape: Shape) -> float:
        """Of the graphs alone. Past the largest size measured it grows as the batch does."""
        if (size, shape) not in self._between:
            known = self.measured[shape]
            below = max((s for s in known if s <= size), default=min(known))
            above = min((s for s in known if s >= size), default=max(known))
            if above == below:
                cost = known[below] * max(1.0, size / below)
            else:
                cost = known[below] + (size - below) / (above - below) * (known[above] - known[below])
            self._between[size, shape] = cost
        return self._between[size, shape]
