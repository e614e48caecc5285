"""The runtime states (attention backends, CUDA graphs) of all trees: built at start, told of, and bounded."""

import logging
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from eagle3_serving.serve.sglang import GRAPH_GB, GRAPH_SECONDS
from eagle3_serving.serve.shape import Shape

log = logging.getLogger(__name__)

GIB = 1 << 30
SPARE = 1 * GIB  # of the device's memory that is left to everything else


class Limits(NamedTuple):
    """What building may take in all."""

    gib: float
    seconds: float


class Built(NamedTuple):
    states: dict[Shape, Any]
    seconds: float
    gib: float
    left_out: dict[Shape, str]  # and why

    def line(self) -> str:
        """What start-up took, and what is missing of it."""
        took = f"{len(self.states)} states built in {self.seconds:.1f} s, {self.gib:.2f} GiB"
        missing = "; ".join(f"{shape} is left out: {why}" for shape, why in self.left_out.items())
        return f"{took}; {missing}" if missing else took


def build_states(
    shapes: Iterable[Shape],
    build: Callable[[Shape], Any],
    free_bytes: Callable[[], int | None],
    limits: Limits,
    agree: Callable[[bool], bool] = bool,
) -> Built:
    """Those of `shapes`, the smallest first: it counts at the loads that need a choice most, and the largest's memory, of
    which SGLang's pool takes the others', is there before.

    `build` raises where the memory does not hold a tree; such a tree is left out, as is what would pass a limit, taken to
    need what the one before it needed. `free_bytes` of the device, None where that is not counted. `agree`: whether all
    ranks say yes, for all must serve the same trees.
    """
    begun, states, left_out = time.perf_counter(), {}, {}
    before = free_bytes()
    used = last_bytes = 0
    last_seconds = 0.0
    for shape in sorted(shapes, key=lambda shape: (shape.drafts, shape.tokens, shape.steps)):
        spent, free = time.perf_counter() - begun, free_bytes()
        why = ""
        if shape.drafts and spent + last_seconds > limits.seconds:
            why = f"{GRAPH_SECONDS}={limits.seconds:g} would be passed"
        elif shape.drafts and used + last_bytes > limits.gib * GIB:
            why = f"{GRAPH_GB}={limits.gib:g} would be passed"
        elif shape.drafts and free is not None and free < SPARE + last_bytes:
            why = f"{free / GIB:.1f} GiB of memory are free"
        if not agree(not why):
            left_out[shape] = why or "another rank has no room"
            continue
        try:
            state = build(shape)
        except Exception as error:
            # SGLang wraps what a capture raised into an Exception of its own
            if not shape.drafts or "out of memory" not in str(error).lower():
                raise
            state = None
        if not agree(state is not None):
            left_out[shape] = "the memory does not hold it"
            continue
        states[shape] = state
        last_seconds = time.perf_counter() - begun - spent
        now = free_bytes()
        if before is not None and now is not None and free is not None:
            used, last_bytes = before - now, max(free - now, 0)
    return Built(states, time.perf_counter() - begun, used / GIB, left_out)
