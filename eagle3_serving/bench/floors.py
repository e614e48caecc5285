"""What the machine could do at best: its copy bandwidth and its matrix rate, and the tokens a second they allow."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from eagle3_serving.errors import InputError
from eagle3_serving.targets.dtypes import DTYPES


@dataclass(frozen=True)
class Floors:
    """`bandwidth` in bytes a second read (half of what a copy moves is read); `rate` in matrix operations a second."""

    bandwidth: float
    rate: float
    device: str

    def to_json(self) -> dict[str, Any]:
        return {"read_bytes_per_second": self.bandwidth, "operations_per_second": self.rate, "device": self.device}

    def tokens_per_second(
        self, parameters: int, bytes_each: int, concurrency: int, accepted_length: float, nodes: float
    ) -> float:
        """The most that `concurrency` requests could get: each pass reads every weight of the target once, and does two
        operations a weight and row. The drafter, the cache and the sampler are taken to cost nothing."""
        pass_s = max(parameters * bytes_each / self.bandwidth, 2.0 * parameters * concurrency * (1 + nodes) / self.rate)
        return concurrency * accepted_length / pass_s


def measure_floors(dtype: str, repeats: int = 7) -> Floors:
    """A second or two: the median of `repeats` copies larger than any cache, and of as many square products."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    large, side = (1 << 30, 8192) if device.type == "cuda" else (1 << 28, 2048)
    source = torch.ones(large // 4, dtype=torch.float32, device=device)
    other = torch.empty_like(source)
    copied = _median(lambda: other.copy_(source), device, repeats)
    a = torch.ones(side, side, dtype=DTYPES[dtype], device=device)
    product = _median(lambda: a @ a, device, repeats)
    name = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    # a copy reads and writes: reading alone has the whole of what it moves
    return Floors(2 * large / copied, 2 * side**3 / product, name)


def count_parameters(directory: Path) -> int:
    """All weights in the directory's safetensors files. Raises InputError where there is none to read."""
    files = sorted(directory.glob("*.safetensors"))
    total = 0
    for path in files:
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 (safe_open is no mapping)
                    size = 1
                    for length in file.get_slice(name).get_shape():
                        size *= length
                    total += size
        except (SafetensorError, OSError) as error:
            raise InputError(f"{path} is not a readable safetensors file: {error}") from None
    if not total:
        raise InputError(f"{directory} holds no *.safetensors: the target's size is not known")
    return total


def _median(once: Callable[[], object], device: torch.device, repeats: int) -> float:
    seconds = []
    for _ in range(repeats + 1):
        begun = time.perf_counter()
        once()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begun)
    return statistics.median(seconds[1:])
