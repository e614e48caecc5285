"""Times of device work: medians of many, by events on a GPU and by the clock elsewhere; and what is captured as a graph."""

import statistics
import time
from collections.abc import Callable
from typing import Any, Generic, NamedTuple, TypeVar

import torch

T = TypeVar("T")


class Timing(NamedTuple):
    """Microseconds."""

    median: float
    p10: float
    p90: float
    repeats: int

    def figures(self) -> dict[str, Any]:
        return {"us": round(self.median, 2), "us_p10": round(self.p10, 2), "us_p90": round(self.p90, 2)}


def first_line(error: BaseException) -> str:
    """The error's kind and the first line of what it says."""
    return f"{type(error).__name__}: {(str(error).splitlines() or ['no word'])[0]}"[:300]


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure(
    run: Callable[[], object], device: torch.device, seconds: float = 0.15, most: int = 100, least: int = 5
) -> Timing:
    """Repeat `run` for about `seconds`. On a GPU each run is timed by its own pair of events, all read at the end."""
    run()
    synchronize(device)
    begun = time.perf_counter()
    run()
    synchronize(device)
    one = max(time.perf_counter() - begun, 1e-7)
    repeats = max(least, min(most, int(seconds / one)))
    times: list[float] = []
    if device.type == "cuda":
        pairs = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(repeats)]
        for first, last in pairs:
            first.record()
            run()
            last.record()
        torch.cuda.synchronize(device)
        times = [first.elapsed_time(last) * 1e3 for first, last in pairs]
    else:
        for _ in range(repeats):
            begun = time.perf_counter()
            run()
            times.append((time.perf_counter() - begun) * 1e6)
    times.sort()
    return Timing(statistics.median(times), times[len(times) // 10], times[-1 - len(times) // 10], repeats)


class Captured(Generic[T]):
    """`compute` as a CUDA graph over fixed tensors; `replay` runs it again and returns the same output tensors.

    Elsewhere, or where a capture fails (`why` says so), `replay` calls `compute`: the same results, without the gain.
    """

    def __init__(self, compute: Callable[[], T], device: torch.device, graphs: bool = True, pool: Any = None) -> None:
        self.compute, self.why = compute, ""
        self.graph: torch.cuda.CUDAGraph | None = None
        if device.type != "cuda" or not graphs:
            self.why = "no graph on this device" if device.type != "cuda" else "graphs are off"
            return
        stream = torch.cuda.Stream(device)
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):  # lazy buffers and handles are made before the capture
            for _ in range(2):
                compute()
        torch.cuda.current_stream(device).wait_stream(stream)
        torch.cuda.synchronize(device)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=pool):
                self.out = compute()
            self.graph = graph
        except Exception as error:  # Triton's errors are of no common kind
            self.why = f"capture failed: {first_line(error)}"
            print(f"no graph, {self.why}", flush=True)
            torch.cuda.synchronize(device)

    def replay(self) -> T:
        if self.graph is None:
            return self.compute()
        self.graph.replay()
        return self.out
