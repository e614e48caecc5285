"""From the device to the host without waiting: what each draft's scores tell of every tree.

Shape letters: S trees, B requests.
"""

from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor

from eagle3_serving.serve.shape import Shape
from eagle3_sglang.host import host_buffer, new_event


class _Note(NamedTuple):
    told_S: Tensor  # on the host
    drafted: Shape
    batch: int
    copied: Any  # an event of the device; None where the copy is done


class Telling:
    """`told_SB` is written by every draft, on the device's own time; `rows` of it are the trees that are asked for."""

    def __init__(self, told_SB: Tensor, rows: Sequence[int]) -> None:
        self.told_SB, self._rows = told_SB, tuple(rows)
        self._notes: deque[_Note] = deque()
        self._spare: list[tuple[Tensor, Any]] = []  # buffers and events that were read

    def note(self, batch: int, drafted: Shape) -> None:
        """After a draft of the first `batch` columns was queued."""
        told_S = self.told_SB[:, :batch].mean(1)
        if told_S.device.type == "cpu":
            self._notes.append(_Note(told_S, drafted, batch, None))
            return
        host_S, copied = self._spare.pop() if self._spare else (host_buffer(told_S), new_event(told_S.device))
        host_S.copy_(told_S, non_blocking=True)
        copied.record()
        self._notes.append(_Note(host_S, drafted, batch, copied))

    def arrived(self) -> list[tuple[list[float], Shape, int]]:
        """Mean accepted drafts told of each tree asked for, the tree drafted and its number of requests, of the drafts whose copy
        is done; oldest first."""
        done: list[tuple[list[float], Shape, int]] = []
        while self._notes and (self._notes[0].copied is None or self._notes[0].copied.query()):
            note = self._notes.popleft()
            told = note.told_S.tolist()
            done.append(([told[row] for row in self._rows], note.drafted, note.batch))
            if note.copied is not None:
                self._spare.append((note.told_S, note.copied))
        return done
