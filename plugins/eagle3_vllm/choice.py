"""Which tree the next step drafts: the one with the best rate of tokens, by what steps cost and what was lately accepted.

Costs are milliseconds of whole steps by batch size and tree, read from `EAGLE3_PROFILE`, or measured at start by replaying
the captured graphs; what serving adds to those is learned. So are gains: every verified request tells what its tree has yielded.

It knows no engine: `scheduling` asks it in vLLM's scheduler.
"""

import json
import statistics
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path

from eagle3_serving.errors import InputError
from eagle3_serving.files import write_whole
from eagle3_serving.serve.graph_costs import GraphCosts
from eagle3_serving.serve.shape import Shape

# verified requests over which a tree's gain is a mean: one text's good minute is not the next one's
MEMORY = 256
TRIES = 32  # verified requests by which a tree is first judged
MARGIN = 1.03  # what drafting must be ahead of plain decoding by, and another tree of the one in use
LOOK_EVERY = 512  # steps after which another tree that may pay is looked at: what is not used is not measured
LOOK_STEPS = 4
TIMED = 9  # steps whose median is what serving costs
LEAST_TIMED = 3  # by which it is first known
HOPELESS = 0.75  # of the best rate: no look is taken at such a tree

Costs = Mapping[int, Mapping[int, float]]  # requests -> tokens of a tree (1: plain decoding) -> milliseconds of a step


class Choice:
    """Trees of one server; `shapes` have different numbers of tokens."""

    def __init__(
        self, shapes: Sequence[Shape], costs: Costs, assumed: Mapping[int, float] | None = None, learn: bool = False
    ) -> None:
        """`assumed`: gains by a tree's tokens that nothing changes. `learn`: costs are of graphs alone. Raises InputError where
        a tree has no cost at any batch size."""
        self.assumed = dict(assumed or {})
        self.shapes = sorted(shapes, key=lambda shape: shape.tokens)
        alone = {s: {batch: row[s.tokens] for batch, row in costs.items() if s.tokens in row} for s in self.shapes}
        for shape, stairs in alone.items():
            if not stairs:
                raise InputError(f"no cost of tree {shape} is known")
        self._costs, self._largest = GraphCosts(costs, alone), {shape: max(stairs) for shape, stairs in alone.items()}
        self.learn = learn
        self._timed: dict[tuple[int, Shape], deque[float]] = {}
        self._gain = {shape.tokens: 0.0 for shape in self.shapes}
        self._seen = {shape.tokens: 0 for shape in self.shapes}
        self._current: dict[int, Shape] = {}  # by batch size
        self._steps = self._looks = 0
        self._looking: list[Shape] = []

    def cost(self, batch: int, shape: Shape) -> float:
        """Of the smallest graph that holds the batch; past the largest it grows as the batch does."""
        return self._costs.of(self._size(batch, shape), shape)

    def _size(self, batch: int, shape: Shape) -> int:
        return self._costs.size(batch) if batch <= self._largest[shape] else batch

    def report_step(self, batch: int, tokens: int, milliseconds: float) -> None:
        """A whole step while serving, of a tree of `tokens` for each request."""
        shape = next((s for s in self.shapes if s.tokens == tokens), None)
        if not self.learn or shape is None:
            return
        size = self._size(batch, shape)
        timed = self._timed.setdefault((size, shape), deque(maxlen=TIMED))
        timed.append(milliseconds)
        if len(timed) >= LEAST_TIMED:
            self._costs.report_served(size, shape, statistics.median(timed))

    def gain(self, shape: Shape) -> float:
        """Accepted drafts a step. Before a tree was tried the most it could have, so that it is tried if it might pay."""
        if shape.tokens in self.assumed:
            return self.assumed[shape.tokens]
        if self._seen[shape.tokens] < TRIES and shape.drafts:
            return float(shape.steps)
        return self._gain[shape.tokens]

    def rate(self, batch: int, shape: Shape) -> float:
        """Tokens a millisecond."""
        return batch * (1 + self.gain(shape)) / self.cost(batch, shape)

    def report_accepted(self, tokens: int, drafts: int) -> None:
        """One request's verified tree of `tokens` (the root included) had `drafts` accepted. Of another tree it says nothing."""
        if tokens in self._gain and tokens > 1:
            self._seen[tokens] += 1
            weight = 1 / min(self._seen[tokens], MEMORY)
            self._gain[tokens] += weight * (drafts - self._gain[tokens])

    def choose(self, batch: int) -> Shape:
        """For the next draft of `batch` requests."""
        self._steps += 1
        if self._looking:
            return self._looking.pop()
        best = max(self.shapes, key=lambda shape: self.rate(batch, shape))
        plain = self.shapes[0]
        if not plain.drafts and best.drafts and self.rate(batch, best) < MARGIN * self.rate(batch, plain):
            best = plain
        current = self._current.get(batch, best)
        if current != best and best.drafts and self.rate(batch, best) < MARGIN * self.rate(batch, current):
            best = current
        self._current[batch] = best
        if self._steps % LOOK_EVERY == 0:
            others = [shape for shape in self.shapes if shape != best and self._may_pay(batch, shape, best)]
            if others:
                self._looks += 1
                self._looking = [others[self._looks % len(others)]] * LOOK_STEPS
        return best

    def _may_pay(self, batch: int, shape: Shape, best: Shape) -> bool:
        """Costs may have been learned in a bad moment: they are doubted where the graphs say otherwise, plain decoding's always."""
        if not shape.drafts:
            return self.learn
        cost = min(self.cost(batch, shape), self._costs.expected(self._size(batch, shape), shape))
        return batch * (1 + self.gain(shape)) / cost > HOPELESS * self.rate(batch, best)


def first_schedule(shapes: Sequence[Shape], max_num_seqs: int, rows: int) -> list[tuple[int, int, int]]:
    """vLLM's `num_speculative_tokens_per_batch_size` before anything is measured: the largest tree whose batch has at most
    `rows` rows, which a GPU verifies in about the time of one; past that the smallest that drafts."""
    drafting = sorted((shape for shape in shapes if shape.drafts), key=lambda shape: -shape.tokens)
    schedule: list[tuple[int, int, int]] = []
    first = 1
    for shape in drafting[:-1]:
        last = min(rows // shape.tokens, max_num_seqs)
        if last >= first:
            schedule.append((first, last, shape.tokens - 1))
            first = last + 1
    if first <= max_num_seqs:
        schedule.append((first, max_num_seqs, drafting[-1].tokens - 1))
    return schedule


def save_costs(path: Path, costs: Costs) -> None:
    """Beside, then renamed."""
    write_whole(path, json.dumps({str(b): {str(t): ms for t, ms in row.items()} for b, row in costs.items()}) + "\n")


def read_costs(path: Path) -> dict[int, dict[int, float]]:
    """Raises InputError naming the file where it holds no costs."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        costs = {int(b): {int(t): float(ms) for t, ms in row.items()} for b, row in raw.items()}
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(f"{path} holds no costs of steps ({error})") from None
    if not costs or not all(ms > 0 for row in costs.values() for ms in row.values()):
        raise InputError(f"{path} holds no costs of steps")
    return costs
