"""Which tree the next step takes: the one with the best rate of tokens, by measured costs and measured acceptance."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from eagle3_serving.serve.shape import Shape
from eagle3_sglang.costs import PROVEN, StepCosts, bucket

# drafts of single requests over which a tree's gain is a mean: one text's good minute is not the next one's
MEMORY = 64
# of one step in that mean, however many requests it has: the same ones draft in the next
LARGEST_WEIGHT = 0.1


@dataclass
class Gains:
    """Accepted tokens a request and step that each tree is good for.

    `expected` comes from the calibrated scores of what was drafted, for every tree at once; `truth` is how much of what was
    told came, so that a drafter whose confidence is off is still judged by its acceptance.
    """

    shapes: Sequence[Shape]
    expected: dict[Shape, float] = field(default_factory=dict)
    reports: Counter[Shape] = field(default_factory=Counter)  # steps that told of each
    accepted_sum: float = 8.0  # decaying sums; their start is a belief in the calibration
    expected_sum: float = 8.0

    def report_expected(self, expected: Sequence[float], deepest: Shape, batch: int = 1) -> None:
        """Means over `batch` requests, one a shape; those of trees deeper than `deepest`, which was drafted, say nothing."""
        moved, steady = 1.0, min(LARGEST_WEIGHT, batch / MEMORY)
        for shape, seen in zip(self.shapes, expected, strict=True):
            if not shape.drafts:
                continue
            before = self.expected.get(shape)
            if shape.steps <= deepest.steps:
                self.reports[shape] += 1
                weight = max(steady, 1 / self.reports[shape])  # the mean of the first few
                self.expected[shape] = seen if before is None else before + weight * (seen - before)
                moved = self.expected[shape] / before if before else 1.0
            elif before is not None:
                # they rise and fall with the deepest that was seen
                self.expected[shape] = before * moved

    def report_accepted(self, accepted: float, shape: Shape) -> None:
        """Mean accepted drafts of a verified batch."""
        if (expected := self.expected.get(shape)) is not None:
            self.accepted_sum = self.accepted_sum * 0.98 + accepted
            self.expected_sum = self.expected_sum * 0.98 + expected

    def report_chain(self, accepted: Sequence[int], drafted: Shape) -> None:
        """Accepted drafts of each request of a verified chain. A chain has no scores to tell by; what came of it tells of
        every shorter one too."""
        if drafted.drafts and accepted:
            expected = [sum(min(one, shape.steps) for one in accepted) / len(accepted) for shape in self.shapes]
            self.report_expected(expected, drafted, len(accepted))
            self.report_accepted(expected[self.shapes.index(drafted)], drafted)

    def of(self, shape: Shape) -> float | None:
        """None before anything like it was drafted."""
        if not shape.drafts:
            return 0.0
        expected = self.expected.get(shape)
        return None if expected is None else expected * self.accepted_sum / self.expected_sum


@dataclass
class Idle:
    """A batch size at which nothing is drafted: for how many steps, and after how many it is tried again."""

    steps: int = 0
    patience: int = 200


class Cycle:
    """Every step the next tree: what tests drive the changes of trees with."""

    def __init__(self, shapes: Sequence[Shape]) -> None:
        self.shapes = tuple(shapes)
        self._next = 0

    def choose(self, batch: int) -> Shape:
        self._next += 1
        return self.shapes[self._next % len(self.shapes)]


class Survey:
    """Every tree in turn at each batch size, some steps each, so that the costs and gains of all get known: for
    `eagle3 tune`."""

    dwell = 6  # steps; the first after none were drafted lets the draft catch up, and is not measured

    def __init__(self, shapes: Sequence[Shape]) -> None:
        self.taken: dict[int, dict[Shape, int]] = {}
        self.shapes = tuple(shapes)
        self.current, self._batch, self._left = self.shapes[0], 0, 0

    def choose(self, batch: int) -> Shape:
        taken = self.taken.setdefault(batch, dict.fromkeys(self.shapes, 0))
        if batch != self._batch or not self._left:
            self.current, self._batch, self._left = min(taken, key=taken.__getitem__), batch, self.dwell
        taken[self.current] += 1
        self._left -= 1
        return self.current


class ShapePolicy:
    """Works without looking at the device: costs are wall clock, gains arrive when they arrive."""

    tries = 3  # steps by which a tree is first judged at a batch size
    hopeless = 0.75  # of the best rate: no larger tree is tried after one this slow, and no look taken at one
    margin = 1.03  # what drafting must be ahead of plain decoding by: less is noise, and plain is the safe side of it
    inertia = 1.02  # what another tree must be ahead by
    look_every = 64  # drafting steps after which another is looked at: what is not used is not measured
    look = 2  # steps that such a look takes
    probe = 3  # steps of a probe after `Idle.patience`
    longest_patience = 3200

    def __init__(self, shapes: Sequence[Shape], costs: StepCosts) -> None:
        self.shapes = tuple(shapes)
        self.costs, self.gains = costs, Gains(self.shapes)
        self.current = self.shapes[-1]
        self.plain = next((shape for shape in self.shapes if not shape.drafts), None)
        self.idle: dict[int, Idle] = {}
        self._probing = self._probes = 0
        self._since_look = self._looks = 0
        self._looking = 0  # steps that a look still takes
        self._looked = self.shapes[0]  # what it is at

    def choose(self, batch: int) -> Shape:
        """For the next step of `batch` requests."""
        self.current = self._untried(batch) or self._best(batch)
        return self.current

    def rate(self, batch: int, shape: Shape) -> float | None:
        """Tokens a second, None where cost or gain is not known yet."""
        seconds, gain = self.costs.seconds(batch, shape), self.gains.of(shape)
        return None if seconds is None or gain is None else batch * (1 + gain) / seconds

    def _untried(self, batch: int) -> Shape | None:
        best = 0.0
        for shape in self.shapes:
            if self.costs.steps(batch, shape) < (self.tries if shape.drafts else PROVEN):
                return shape
            rate = self.rate(batch, shape)
            if rate is None:
                return shape
            best = max(best, rate)
            if rate < self.hopeless * best:
                return None
        return None

    def _best(self, batch: int) -> Shape:
        rates = {shape: rate for shape in self.shapes if (rate := self.rate(batch, shape)) is not None}
        drafting = {shape: rate for shape, rate in rates.items() if shape.drafts}
        if not drafting:
            return self.shapes[0]
        best = max(drafting, key=drafting.__getitem__)
        if self.current in drafting and drafting[best] < self.inertia * drafting[self.current]:
            best = self.current
        plain = None if self.plain is None else rates.get(self.plain)
        if plain is None or drafting[best] > self.margin * plain:
            self.idle.pop(bucket(batch), None)
            others = [shape for shape, rate in drafting.items() if shape != best and rate > self.hopeless * rates[best]]
            return self._look(others) or best
        if not self._probe(batch):
            return self.shapes[0]
        others = [shape for shape, rate in drafting.items() if rate > self.hopeless * plain]
        return others[self._probes % len(others)] if others else best

    def _look(self, others: Sequence[Shape]) -> Shape | None:
        """Plain decoding and another tree in turn: costs may have been measured in a bad moment, and what a deeper tree
        gains nothing else tells."""
        if self._looking:
            self._looking -= 1
            return self._looked
        self._since_look += 1
        if self._since_look < self.look_every:
            return None
        self._since_look = 0
        self._looks += 1
        if self._looks % 2 and self.plain is not None:
            self._looked = self.plain
        elif others:
            self._looked = others[self._looks // 2 % len(others)]
        else:
            return None
        self._looking = self.look - 1
        return self._looked

    def _probe(self, batch: int) -> bool:
        """Texts change: after long idleness a few steps draft, so that the gains are those of now."""
        if self._probing:
            self._probing -= 1
            return True
        idle = self.idle.setdefault(bucket(batch), Idle())
        idle.steps += 1
        if idle.steps < idle.patience:
            return False
        idle.steps, idle.patience = 0, min(2 * idle.patience, self.longest_patience)
        self._probing = self.probe - 1
        self._probes += 1
        return True
