"""Whole requests under a closed loop, played through measured costs: how long a load would take."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True)
class Course:
    """How a server runs. `prefill(requests)`: seconds to take in their prompts at once. `step(batch)`: seconds of one decoding step.
    `tokens(request, step, batch)`: what that step gives that request."""

    prefill: Callable[[Sequence[int]], float]
    step: Callable[[int], float]
    tokens: Callable[[int, int, int], int]


def play(course: Course, requests: int, concurrency: int, tokens: int, first: int = 0) -> float:
    """Seconds until `requests` answers of `tokens` have ended, the next request sent as one ends; they are numbered from
    `first`. The prefill gives the first token; requests in flight make a step beside it."""
    waiting = list(range(first, first + requests))
    left: dict[int, int] = {}
    steps: dict[int, int] = {}
    seconds = 0.0
    while waiting or left:
        joining, waiting = waiting[: concurrency - len(left)], waiting[concurrency - len(left) :]
        if joining:
            seconds += course.prefill(joining)
        if left:
            batch = len(left)
            seconds += course.step(batch)
            for request in left:
                # a step that gives more than is asked for is cut off
                left[request] -= course.tokens(request, steps[request], batch)
                steps[request] += 1
        for request in joining:
            left[request], steps[request] = tokens - 1, 0
        left = {request: count for request, count in left.items() if count > 0}
    return seconds


def rate(course: Course, requests: int, concurrency: int, tokens: int, plays: int = 16) -> float:
    """Tokens a second, the mean of several plays with other requests."""
    seconds = [play(course, requests, concurrency, tokens, turn * requests) for turn in range(plays)]
    return requests * tokens / statistics.mean(seconds)


def between(points: Mapping[int, float], batch: int) -> float:
    """On straight lines between the batch sizes measured; level outside of them. `points` is not empty."""
    sizes = sorted(points)
    if batch <= sizes[0]:
        return points[sizes[0]]
    for low, high in pairwise(sizes):
        if batch <= high:
            return points[low] + (points[high] - points[low]) * (batch - low) / (high - low)
    return points[sizes[-1]]
