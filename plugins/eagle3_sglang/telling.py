"""From the device to the host without waiting: what each draft's scores tell of every tree.

Shape letters: S trees, B requests.
"""

from collections import deque
from typing import NamedTuple

import torch
from torch import Tensor

from eagle3_serving.serve.shape import Shape


class _Note(NamedTuple):
    told_S: Tensor
    drafted: Shape
    batch: int
    copied: "torch.cuda.Event | None"


class Telling:
    """`told_SB` is written by every draft, on the device's own time."""

    def __init__(self, told_SB: Tensor) -> None:
        self.told_SB = told_SB
        self._notes: deque[_Note] = deque()

    def note(self, batch: int, drafted: Shape) -> None:
        """After a draft of the first `batch` columns was queued."""
        told_S = self.told_SB[:, :batch].mean(1)
        if told_S.device.type == "cpu":
            self._notes.append(_Note(told_S, drafted, batch, None))
            return
        host_S = torch.empty(told_S.shape, dtype=told_S.dtype, pin_memory=True)
        host_S.copy_(told_S, non_blocking=True)
        copied = torch.cuda.Event()
        copied.record()
        self._notes.append(_Note(host_S, drafted, batch, copied))

    def arrived(self) -> list[tuple[list[float], Shape, int]]:
        """Mean accepted drafts told of each tree, the tree drafted and its number of requests, of the drafts whose copy
        is done; oldest first."""
        done: list[tuple[list[float], Shape, int]] = []
        while self._notes and (self._notes[0].copied is None or self._notes[0].copied.query()):
            note = self._notes.popleft()
            done.append((note.told_S.tolist(), note.drafted, note.batch))
        return done
