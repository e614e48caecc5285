"""Between host and device without waiting: copies that the device does in its own time, and how long it took for a step."""

import time
from collections import deque
from typing import Any

import torch
from torch import Tensor

from eagle3_serving.serve.shape import Shape


def to_device(host: Tensor, device: torch.device) -> Tensor:
    """A copy there. From pinned memory, or the host would wait for all that is queued before."""
    if device.type == "cpu":
        return host
    return _pinned(host, device).to(device, non_blocking=True)


def host_buffer(like: Tensor) -> Tensor:
    """Where `like`, a tensor of a device, can be copied to without waiting."""
    return torch.empty(like.shape, dtype=like.dtype, pin_memory=like.device.type == "cuda")


def new_event(device: torch.device, timing: bool = False) -> Any:
    """The device's own: `torch.cuda.Event`, ..."""
    return torch.get_device_module(device).Event(enable_timing=timing)


def _pinned(host: Tensor, device: torch.device) -> Tensor:
    return host.pin_memory() if device.type == "cuda" else host


def timed(work: Any, device: torch.device) -> float:
    """Seconds that the device takes for what `work()` queues; waits for it. At start only."""
    begun, ended = new_event(device, timing=True), new_event(device, timing=True)
    begun.record()
    work()
    ended.record()
    ended.synchronize()
    return float(begun.elapsed_time(ended)) / 1e3


class StepClock:
    """How long decoding steps lasted, each until the next one began, where nothing came between them.

    On a device by its events: under the overlap schedule the host runs ahead, and its own clock would tell its pace. On a
    CPU by the host's clock. No call waits.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._begun: tuple[Any, int, Shape] | None = None  # the step that the next mark ends
        self._mark: Any = None
        self._pending: deque[tuple[Any, Any, int, Shape]] = deque()

    def mark(self, batch: int) -> None:
        """A step of so many requests begins."""
        self._mark = self._now()
        if self._begun is not None and self._begun[1] == batch:
            begun, _, shape = self._begun
            self._pending.append((begun, self._mark, batch, shape))
        self._begun = None

    def report(self, batch: int, shape: Shape) -> None:
        """What the marked step did; said after it was queued."""
        self._begun = self._mark, batch, shape

    def interrupt(self) -> None:
        """Something else than a step comes next, or this one is like no other."""
        self._begun = None

    def durations(self) -> list[tuple[int, Shape, float]]:
        """Requests, tree and seconds of the steps whose end the device has reached; oldest first, each once."""
        done = []
        while self._pending and self._reached(self._pending[0][1]):
            begun, ended, batch, shape = self._pending.popleft()
            done.append((batch, shape, self._between(begun, ended)))
        return done

    def _now(self) -> Any:
        if self._device.type == "cpu":
            return time.perf_counter()
        event = new_event(self._device, timing=True)
        event.record()
        return event

    def _reached(self, mark: Any) -> bool:
        return self._device.type == "cpu" or bool(mark.query())

    def _between(self, begun: Any, ended: Any) -> float:
        seconds = ended - begun if self._device.type == "cpu" else begun.elapsed_time(ended) / 1e3
        return float(seconds)
