"""From the device to the host without waiting: what each draft's scores tell of every tree.

Shape letters: S trees, B requests.
"""

from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor

from eagle3_serving.serve.shape import Shape
from eagle3_sglang.host import host_buffer, new_event


class _InFlight(NamedTuple):
    expected_S: Tensor  # on the host
    drafted: Shape
    batch: int
    copied: Any  # an event of the device; None where the copy is done


class GainTransfer:
    """`expected_SB` is written by every draft, on the device's own time; `rows` of it are the trees that are asked for."""

    def __init__(self, expected_SB: Tensor, rows: Sequence[int]) -> None:
        self.expected_SB, self._rows = expected_SB, tuple(rows)
        self._in_flight: deque[_InFlight] = deque()
        self._spare: list[tuple[Tensor, Any]] = []  # buffers and events that were read

    def enqueue(self, batch: int, drafted: Shape) -> None:
        """After a draft of the first `batch` columns was queued."""
        expected_S = self.expected_SB[:, :batch].mean(1)
        if expected_S.device.type == "cpu":
            self._in_flight.append(_InFlight(expected_S, drafted, batch, None))
            return
        host_S, copied = self._spare.pop() if self._spare else (host_buffer(expected_S), new_event(expected_S.device))
        host_S.copy_(expected_S, non_blocking=True)
        copied.record()
        self._in_flight.append(_InFlight(host_S, drafted, batch, copied))

    def arrivals(self) -> list[tuple[list[float], Shape, int]]:
        """Mean accepted drafts told of each tree asked for, the tree drafted and its number of requests, of the drafts whose copy
        is done; oldest first."""
        done: list[tuple[list[float], Shape, int]] = []
        while self._in_flight and (self._in_flight[0].copied is None or self._in_flight[0].copied.query()):
            oldest = self._in_flight.popleft()
            expected = oldest.expected_S.tolist()
            done.append(([expected[row] for row in self._rows], oldest.drafted, oldest.batch))
            if oldest.copied is not None:
                self._spare.append((oldest.expected_S, oldest.copied))
        return done
