"""Where a step's time goes: its parts, synchronised; kernels, copies and waits that the host launched; graphs' memory."""

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from benchmarks.gpu.timing import synchronize

# as PyTorch's profiler names the calls of CUDA's runtime and driver
LAUNCHES = ("cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cuLaunchKernelEx")
GRAPHS = ("cudaGraphLaunch", "cuGraphLaunch")
OWN_WAITS = 2  # for the device, of a whole profile: the one that ends it, and the profiler's
COPIES = ("cudaMemcpyAsync", "cudaMemcpy", "cuMemcpyHtoDAsync_v2", "cuMemcpyDtoHAsync_v2")


class Parts:
    def __init__(self) -> None:
        self.times_ms: defaultdict[str, list[float]] = defaultdict(list)

    def medians(self) -> dict[str, float]:
        return {name: round(statistics.median(times), 3) for name, times in self.times_ms.items()}


@contextmanager
def parts_of(targets: Sequence[tuple[Any, str, str]], device: torch.device) -> Iterator[Parts]:
    """Methods (owner, method, name) timed with the device waited for on both sides, until the block ends."""
    parts, undo = Parts(), []
    for owner, method, name in targets:
        made, own = getattr(owner, method), method in vars(owner)

        def timed(*given: Any, made: Callable[..., Any] = made, name: str = name, **named: Any) -> Any:
            synchronize(device)
            begun = time.perf_counter()
            result = made(*given, **named)
            synchronize(device)
            parts.times_ms[name].append((time.perf_counter() - begun) * 1e3)
            return result

        setattr(owner, method, timed)
        undo.append((owner, method, made if own else None))
    try:
        yield parts
    finally:
        for owner, method, before in undo:
            if before is None:
                delattr(owner, method)
            else:
                setattr(owner, method, before)


class Profile:
    """PyTorch's profiler over `steps` steps of a load, after `skip` of them. Told of each step by `step`."""

    def __init__(self, device: torch.device, steps: int, skip: int) -> None:
        self.device, self.steps, self.skip = device, steps, skip
        kinds = [torch.profiler.ProfilerActivity.CPU]
        if device.type == "cuda":
            kinds.append(torch.profiler.ProfilerActivity.CUDA)
        self.profiler = torch.profiler.profile(activities=kinds)
        self.running = self.complete = False

    def step(self, counted: int) -> bool:
        """True once enough was seen."""
        if counted == self.skip:
            synchronize(self.device)
            self.profiler.__enter__()
            self.running = True
        elif counted == self.skip + self.steps:
            synchronize(self.device)
            self.stop()
            self.complete = True
        return self.complete

    def stop(self) -> None:
        if self.running:
            self.profiler.__exit__(None, None, None)
            self.running = False

    def counts(self) -> dict[str, float | None]:
        """A step's launches (one of a graph is one), those of graphs, copies, waits, and milliseconds of kernels."""
        if not self.complete:
            return dict.fromkeys(("launches", "graph_launches", "memcpys", "syncs", "event_waits", "kernels_ms"))
        return counted(self.profiler.key_averages(), self.steps)


def counted(events: Sequence[Any], steps: int) -> dict[str, float | None]:
    """Of the profiler's sums by name (`key`, `count`, `self_device_time_total` in microseconds)."""

    def calls(*names: str) -> int:
        return sum(event.count for event in events if event.key in names)

    # an asynchronous engine waits for an event a step: for the tokens of the step before
    waits = calls("cudaStreamSynchronize") + max(0, calls("cudaDeviceSynchronize") - OWN_WAITS)
    busy = sum(event.self_device_time_total for event in events) / steps / 1e3
    return {
        "launches": calls(*LAUNCHES, *GRAPHS) / steps,
        "graph_launches": calls(*GRAPHS) / steps,
        "memcpys": calls(*COPIES) / steps,
        "syncs": waits / steps,
        "event_waits": calls("cudaEventSynchronize") / steps,
        "kernels_ms": round(busy, 3),
    }


@contextmanager
def profiled(device: torch.device, steps: int, skip: int) -> Iterator[Profile]:
    profile = Profile(device, steps, skip)
    try:
        yield profile
    finally:
        profile.stop()


def graph_gib(device: torch.device) -> float | None:
    """What this process's CUDA graphs hold: the allocator's private pools. None where there are no graphs."""
    if device.type != "cuda":
        return None
    held = [s["total_size"] for s in torch.cuda.memory_snapshot() if tuple(s.get("segment_pool_id", (0, 0))) != (0, 0)]
    return round(float(sum(held)) / 2**30, 3)
