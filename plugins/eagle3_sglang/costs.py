"""What a step of each tree takes, measured while it serves and kept for the next start."""

import json
import statistics
from collections import deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eagle3_serving.files import write_whole
from eagle3_serving.serve.graph_costs import GraphCosts
from eagle3_serving.serve.shape import Shape
from eagle3_serving.tree.budget import Curve

KEPT = 9  # steps whose median counts
PROVEN = 4  # steps after which a cost is known
BETTER = 0.9  # of the median: two such steps in a row, and what was measured before was another moment's
# the median of what the steps around one, itself in the middle, took over what they are known for is its pace
WINDOW = 7
TYPICAL = 256  # steps whose pace is the usual one


def bucket(batch: int) -> int:
    """Batch sizes that are alike: 1, 2, 3-4, 5-8, 9-16, ..."""
    return (batch - 1).bit_length()


@dataclass(eq=False)
class Step:
    """One that was measured."""

    batch: int
    shape: Shape
    seconds: float
    pace: float = 1.0
    ratio: float | None = None  # to what was known of its kind, where anything was

    @property
    def at_usual_pace(self) -> float:
        return self.seconds / self.pace


class StepCosts:
    """Seconds of a whole step (draft, verification, the draft's catching up) by batch size and tree.

    A tree's number of verified rows stands for it on a shared `Curve`, so that batch sizes not yet met lie on a line
    between those that were: those at which the tree itself was met, where it was anywhere.

    Where CUDA graphs run, `sizes` are the batch sizes they were captured at, and `GraphCosts` knows more.

    What slows all steps alike (neighbours on the machine, clocks, long texts) would count against the trees met just then:
    with `paced`, each step is taken at the pace of those around it. A tree in use alone is then no news of its own cost;
    steps of another in between are (`ShapePolicy`'s looks and probes).
    """

    def __init__(self, shapes: Iterable[Shape], paced: bool = True, sizes: Sequence[int] = ()) -> None:
        self.shapes = tuple(shapes)
        self._paced = paced
        self._graphs = GraphCosts(sizes, {})
        self._seen: dict[tuple[int, Shape], deque[Step]] = {}
        self._recent: deque[Step] = deque(maxlen=WINDOW)
        self._paces: deque[float] = deque([1.0], maxlen=TYPICAL)
        self._curve = Curve({})
        # a tree's own batch sizes: one tree's seconds at a size passed through would be every tree's there
        self._curves: dict[Shape, Curve] = {}
        self._cold: set[tuple[int, Shape]] = set()  # of which one step was measured: the first meets cold caches

    @property
    def sizes(self) -> tuple[int, ...]:
        return self._graphs.sizes

    def size(self, batch: int) -> int:
        """The batch size that stands for this one."""
        return self._graphs.size(batch)

    def replay(self, seconds: Mapping[tuple[int, Shape], float], sizes: Sequence[int] = ()) -> None:
        """Seconds of the graphs alone, by captured size and tree. `sizes`: of those captured, where nobody said."""
        alone: dict[Shape, dict[int, float]] = {}
        for (size, shape), each in sorted(seconds.items()):
            alone.setdefault(shape, {})[size] = each
        self._graphs = GraphCosts(self.sizes or sizes, alone)
        for size in {size for size, _ in self._seen}:
            self._refit(size)

    def add(self, batch: int, shape: Shape, seconds: float) -> None:
        """The first of a kind counts until there is a second."""
        batch = self.size(batch)
        key = batch, shape
        seen = self._seen.setdefault(key, deque(maxlen=KEPT))
        step = Step(batch, shape, seconds, self._paces[-1])
        if key in self._cold:
            seen.clear()
            self._cold.remove(key)
        elif not seen:
            self._cold.add(key)
        elif len(seen) > 1:
            step.ratio = seconds / _median(seen)
        seen.append(step)
        self._recent.append(step)
        changed = {batch}
        if len(self._recent) > WINDOW // 2:
            central = self._recent[-1 - WINDOW // 2]
            self._set_pace(central)
            changed.add(central.batch)
        for size in changed:
            self._refit(size)

    def _set_pace(self, step: Step) -> None:
        """Its pace, by the steps before and after it; and whether what was known of its kind was another moment's."""
        ratios = [near.ratio for near in self._recent if near.ratio is not None]
        if self._paced and len(ratios) > WINDOW // 2:
            step.pace = statistics.median(ratios)
            self._paces.append(step.pace)
        seen = self._seen[step.batch, step.shape]
        if step not in seen:
            return
        place = seen.index(step)
        if place and len(seen) > 2 and max(s.at_usual_pace for s in (seen[place - 1], step)) < BETTER * _median(seen):
            for _ in range(place - 1):
                seen.popleft()

    def _refit(self, batch: int) -> None:
        seen = {shape: _median(self._seen[batch, shape]) for shape in self.shapes if (batch, shape) in self._seen}
        points = tuple(sorted((float(batch * shape.tokens), seconds) for shape, seconds in seen.items()))
        # one step alone met cold caches
        for shape, seconds in seen.items():
            if len(self._seen[batch, shape]) > 1:
                self._graphs.report_served(batch, shape, seconds)
        for curve in (self._curve, *(self._curves.setdefault(shape, Curve({})) for shape in seen)):
            curve.points[batch] = points

    def steps(self, batch: int, shape: Shape) -> int:
        """How many steps were measured at batch sizes like this; enough where the graphs were."""
        if shape in self._graphs:
            return PROVEN
        return sum(len(seen) for (b, s), seen in self._seen.items() if s == shape and bucket(b) == bucket(batch))

    def seconds(self, batch: int, shape: Shape) -> float | None:
        """At one pace for all; None before anything was measured."""
        size = self.size(batch)
        if shape in self._graphs:
            return self._graphs.of(size, shape)
        if not self._curve.points:
            return None
        return self._curves.get(shape, self._curve).at(size, size * shape.tokens)

    def measured(self, batch: int) -> set[Shape]:
        """The trees with a cost of their own at exactly this batch size."""
        return {shape for size, shape in self._seen if size == self.size(batch)}

    def keep(self, batches: Collection[int]) -> None:
        """Drop the other batch sizes: passed through as requests ended, they were hardly measured."""
        batches = {self.size(batch) for batch in batches}
        self._seen = {key: seen for key, seen in self._seen.items() if key[0] in batches}
        self._recent.clear()
        self._curve, self._curves = Curve({}), {}
        self._graphs.forget_served()
        for batch in {size for size, _ in self._seen}:
            self._refit(batch)

    def save(self, path: Path, about: dict[str, str]) -> None:
        """Beside, then renamed. Seconds at the usual pace."""
        usual = statistics.median(self._paces)
        rows = [[batch, list(shape), usual * _median(seen)] for (batch, shape), seen in sorted(self._seen.items())]
        graphs = [
            [size, list(shape), each]
            for shape, of_shape in sorted(self._graphs.measured.items())
            for size, each in of_shape.items()
        ]
        write_whole(path, json.dumps({"about": about, "seconds": rows, "graphs": graphs, "sizes": self.sizes}) + "\n")

    def read(self, path: Path, about: dict[str, str]) -> bool:
        """Takes over what another run measured of the same things; false where it measured others. Raises ValueError
        naming the file where it is no profile."""
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
            rows, graphs = _rows(raw["seconds"]), _rows(raw.get("graphs", []))
            sizes = tuple(sorted(map(int, raw.get("sizes", ()))))
            same = raw["about"] == about
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{path} is not a profile of step costs ({error}): remove it, it is measured again"
            ) from None
        if not same:
            return False
        self.replay({key: seconds for key, seconds in graphs.items() if min(key[0], seconds) > 0}, sizes)
        for (batch, shape), seconds in rows.items():
            if shape in self.shapes and batch > 0 and seconds > 0:
                # known well enough not to be tried again
                self._seen[batch, shape] = deque((Step(batch, shape, seconds) for _ in range(PROVEN)), maxlen=KEPT)
                self._refit(batch)
        return True

    @property
    def graphs_known(self) -> bool:
        """Whether the graphs of every tree were measured."""
        return set(self.shapes) <= set(self._graphs.measured)


def _rows(rows: Iterable[Sequence[Any]]) -> dict[tuple[int, Shape], float]:
    return {(int(batch), Shape(*map(int, shape))): float(seconds) for batch, shape, seconds in rows}


def measured_with(path: Path) -> dict[str, str]:
    """What a profile says it was measured with; {} where it says nothing."""
    try:
        return {str(name): str(value) for name, value in json.loads(path.read_text(encoding="utf-8"))["about"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _median(steps: Iterable[Step]) -> float:
    return statistics.median(step.at_usual_pace for step in steps)
