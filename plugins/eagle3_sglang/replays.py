"""What each tree's captured graphs take, measured at start by replaying them: seconds, before a request was served.

A replay reads what the capture left in the graphs' own buffers: texts of one token and cache slot 0, which holds nothing.
"""

import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from eagle3_serving.serve.shape import Shape

WARM, TIMED = 1, 3


def sizes_to_time(captured: Sequence[int]) -> list[int]:
    """Of the captured batch sizes the powers of two (or the next larger) and the largest: the others lie between."""
    ordered = sorted(set(captured))
    if not ordered:
        return []
    wanted = [1 << power for power in range(ordered[-1].bit_length())] + [ordered[-1]]
    return sorted({next(size for size in ordered if size >= each) for each in wanted if each <= ordered[-1]})


def replay_all(
    graphs: Mapping[Shape, Sequence[Mapping[int, Callable[[], Any]]]],
    sizes: Iterable[int],
    timed: Callable[[Callable[[], Any]], float],
    most_seconds: float = 30.0,
) -> dict[tuple[int, Shape], float]:
    """Seconds by batch size and tree: its draft, its verification and the draft's catching up, one after another.

    `graphs`: of each tree, what replays each of its graphs, by batch size. A size that one of a tree's graphs lacks is
    left out. Ends where `most_seconds` are spent, the smallest sizes first.
    """
    begun, found = time.perf_counter(), {}
    for size in sorted(sizes):
        for shape, of_shape in graphs.items():
            replays = [of_graph.get(size) for of_graph in of_shape]
            if not replays or None in replays or time.perf_counter() - begun > most_seconds:
                continue
            found[size, shape] = sum(_median(replay, timed) for replay in replays if replay is not None)
    return found


def _median(replay: Callable[[], Any], timed: Callable[[Callable[[], Any]], float]) -> float:
    for _ in range(WARM):
        timed(replay)
    return statistics.median(timed(replay) for _ in range(TIMED))
