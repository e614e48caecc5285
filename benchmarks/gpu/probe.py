"""Step 1: the machine, and the two floors that every later figure is held against."""

import importlib.metadata
import os
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.gpu.settings import Settings
from benchmarks.gpu.sink import Sink, read_lines
from benchmarks.gpu.timing import measure

PACKAGES = ("torch", "triton", "transformers", "safetensors", "numpy", "flashinfer-python", "vllm", "sglang")


class Floors(NamedTuple):
    """`bandwidth` bytes a second, read and written both counted; `rate` bf16 operations a second in a matrix product."""

    bandwidth: float
    rate: float

    def seconds(self, moved: float, operations: float = 0.0) -> float:
        """The least time for so many bytes and operations: the larger of the two."""
        return max(moved / self.bandwidth, operations / self.rate)


def run(settings: Settings, sink: Sink, out: Path) -> None:
    device = settings.torch_device
    if not sink.has("machine"):
        sink.add("machine", **machine(device))
    if not sink.has("copy"):
        size = 1 << (20 if settings.tiny else 32)
        source = torch.empty(size, dtype=torch.uint8, device=device).random_(0, 255)
        other = torch.empty_like(source)
        timing = measure(lambda: other.copy_(source), device, seconds=0.5)
        sink.add("copy", bytes=2 * size, **timing.figures(), bytes_per_second=2 * size / timing.median * 1e6)
        del source, other
    if not sink.has("matmul"):
        side = 128 if settings.tiny else 8192
        a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
        timing = measure(lambda: a @ b, device, seconds=0.5)
        sink.add("matmul", side=side, **timing.figures(), operations_per_second=2 * side**3 / timing.median * 1e6)
    if not sink.has("launch"):
        # how much host time one small operation costs: what graphs save
        x = torch.zeros(1, device=device)
        timing = measure(lambda: [x.add_(1) for _ in range(100)], device, seconds=0.1)
        sink.add("launch", us_each=round(timing.median / 100, 3))
    floors = floors_in(sink.rows)
    if not sink.has("ridge"):
        # a weight is two bytes and, for each row, two operations
        sink.add("ridge", tokens=round(floors.rate / floors.bandwidth, 1))


def floors_in(rows: list[dict[str, Any]]) -> Floors:
    found = {row["key"]: row for row in rows}
    return Floors(found["copy"]["bytes_per_second"], found["matmul"]["operations_per_second"])


def floors(settings: Settings, out: Path) -> Floors:
    """Those of an earlier probe in `out`, else measured now and kept in memory only."""
    rows = [line for line in read_lines(out / "probe.jsonl") if "key" in line]
    if {"copy", "matmul"} <= {row["key"] for row in rows}:
        return floors_in(rows)
    scratch = Sink(out / ".probe-again.jsonl", {})
    run(settings, scratch, out)
    return floors_in(scratch.rows)


def machine(device: torch.device) -> dict[str, Any]:
    figures: dict[str, Any] = {
        "python": platform.python_version(),
        "processors": os.cpu_count(),
        "platform": platform.platform(),
        "versions": {name: version(name) for name in PACKAGES},
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        figures |= {
            "name": properties.name,
            "memory_gib": round(properties.total_memory / 2**30, 1),
            "multiprocessors": properties.multi_processor_count,
            "capability": f"{properties.major}.{properties.minor}",
            "cuda": torch.version.cuda,
        }
        if shutil.which("nvidia-smi"):
            query = ["nvidia-smi", "--query-gpu=driver_version,clocks.sm,clocks.mem,temperature.gpu", "--format=csv"]
            said = subprocess.run(query, capture_output=True, text=True, check=False).stdout
            figures["nvidia_smi"] = said.splitlines()
    else:
        figures["name"] = platform.processor() or platform.machine()
    return figures


def version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def summarise(rows: list[dict[str, Any]]) -> list[list[str]]:
    found = {row["key"]: row for row in rows}
    table = [["what", "figure"]]
    if machine_row := found.get("machine"):
        table.append(["device", f"{machine_row['name']}, {machine_row.get('memory_gib', '-')} GiB"])
        versions = ", ".join(f"{name} {value}" for name, value in machine_row["versions"].items() if value)
        table.append(["versions", f"Python {machine_row['python']}, {versions}"])
    if "copy" in found:
        table.append(["copy bandwidth, read + written", f"{found['copy']['bytes_per_second'] / 1e12:.3f} TB/s"])
    if "matmul" in found:
        table.append(["bf16 matrix rate", f"{found['matmul']['operations_per_second'] / 1e12:.1f} TFLOP/s"])
    if "ridge" in found:
        table.append(["ridge: rows of a pass that are nearly free", f"{found['ridge']['tokens']:.0f}"])
    if "launch" in found:
        table.append(["one small operation, not in a graph", f"{found['launch']['us_each']:.2f} us"])
    return table
