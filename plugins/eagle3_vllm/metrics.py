"""What is counted, on its way from the worker's process to vLLM's own Prometheus endpoint.

A worker counts on its device and, about once a second, writes its sums to a file of its own in a folder that the server's
first process made; there a collector in vLLM's registry adds the files up whenever the endpoint is read. So it is the
same for one process and for many, and no message of vLLM's is changed.

| metric | meaning |
|---|---|
| `vllm:eagle3_verify_passes_total` | requests' passes that verified a draft |
| `vllm:eagle3_nodes_verified_total` | draft tokens verified in them, padding not counted |
| `vllm:eagle3_tokens_accepted_total` | draft tokens accepted |
| `vllm:eagle3_accepted_length` | tokens a verify pass has yielded on average, bonus included |
| `vllm:eagle3_drafts_total`, `vllm:eagle3_nodes_budgeted_total` | drafts, and nodes chosen to be verified: the budget |
| `vllm:eagle3_fallbacks_total{scope,reason}` | requests drafted a chain, servers without trees, by reason |
| `vllm:eagle3_gated_steps_total{reason,rows}` | requests' steps whose gate was closed (`gates`): with one row of their own, or kept among the others' |
"""

import atexit
import json
import os
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eagle3_serving.tree import PADDING

FOLDER = "EAGLE3_METRICS_DIR"
SUMS = {
    "verify_passes": "Requests' passes that verified a draft.",
    "nodes_verified": "Draft tokens verified, padding not counted.",
    "tokens_accepted": "Draft tokens accepted.",
    "drafts": "Drafts made.",
    "nodes_budgeted": "Draft tokens chosen to be verified.",
}
WRITE_EVERY_S = 1.0


class Tally:
    """The counts of one worker. Sums stay on the device until they are written: counting waits for nothing. Ranks of tensor
    parallelism count the same, so one of them `writes`."""

    def __init__(self, device: torch.device, writes: bool = True) -> None:
        self.sums = torch.zeros(len(SUMS), dtype=torch.long, device=device)
        self.host = torch.zeros(len(SUMS), dtype=torch.long, pin_memory=self.sums.is_cuda)
        self.transfer: Any = None  # the event of a copy to the host
        self.fallbacks: Counter[str] = Counter()  # "scope reason"
        folder = os.environ.get(FOLDER)
        self.file = Path(folder) / f"{os.getpid()}.json" if folder and writes else None
        self.written = 0.0
        atexit.register(self.write)

    def report_fallback(self, scope: str, reason: str) -> None:
        self.fallbacks[f"{scope} {reason}"] += 1

    def report_draft(self, parents_BN: Tensor, drafting_B: Tensor) -> None:
        """A draft, as node parents, of the requests `drafting_B` [B] bool."""
        nodes_B = (parents_BN != PADDING).sum(1)
        self.sums[3:] += torch.stack([drafting_B.sum(), nodes_B.sum()])

    def write(self, after_s: float = 0.0) -> None:
        """Unless it was written less than `after_s` seconds ago."""
        now = time.monotonic()
        if self.file is None or now - self.written < after_s:
            return
        if self.transfer is None or not after_s:
            self.host.copy_(self.sums, non_blocking=after_s > 0)
            self.transfer = _event(self.sums.device)
        if after_s and not (self.transfer is True or self.transfer.query()):
            return  # the host waits for no copy: the next step looks again
        self.transfer, self.written = None, now
        counts = {"sums": dict(zip(SUMS, self.host.tolist(), strict=True)), "fallbacks": self.fallbacks}
        write_counts(self.file, counts)


def write_counts(file: Path, counts: dict[str, Any]) -> None:
    """One process's counts, beside and renamed: another may read at any time."""
    beside = file.with_suffix(".partial")
    with suppress(OSError):  # the folder is gone when the server has ended
        beside.write_text(json.dumps(counts))
        beside.replace(file)


def _event(device: torch.device) -> Any:
    """Of what was just asked of the device; True where it is done by then."""
    if device.type != "cuda":
        return True
    event = torch.cuda.Event()
    event.record()
    return event


class TreeCollector:
    """Adds up the files of all workers. A custom collector of prometheus_client's."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def describe(self) -> list[Any]:
        return []  # no name is known before there is a count

    def collect(self) -> Iterator[Any]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        sums, fallbacks = read_sums(self.folder)
        for name, meaning in SUMS.items():
            yield CounterMetricFamily(f"vllm:eagle3_{name}", meaning, value=sums[name])
        passes = sums["verify_passes"]
        length = 1 + sums["tokens_accepted"] / passes if passes else 1.0
        yield GaugeMetricFamily("vllm:eagle3_accepted_length", "Tokens a verify pass yields, bonus included.", length)
        family = CounterMetricFamily(
            "vllm:eagle3_fallbacks", "Chains in the place of trees.", labels=["scope", "reason"]
        )
        for key, count in sorted(fallbacks.items()):
            family.add_metric(key.split(" ", 1), count)
        yield family
        gated = CounterMetricFamily(
            "vllm:eagle3_gated_steps", "Requests' steps that a gate closed.", labels=["reason", "rows"]
        )
        for key, count in sorted(read_closed(self.folder).items()):
            gated.add_metric(key.split(" "), count)
        yield gated


def read_closed(folder: Path) -> Counter[str]:
    """Requests' steps that gates closed, by "reason rows"."""
    closed: Counter[str] = Counter()
    for file in sorted(folder.glob("*-gates.json")):
        with suppress(OSError, ValueError):
            closed.update(json.loads(file.read_text())["closed"])
    return closed


def read_sums(folder: Path) -> tuple[Counter[str], Counter[str]]:
    sums: Counter[str] = Counter()
    fallbacks: Counter[str] = Counter()
    for file in sorted(folder.glob("*.json")):
        with suppress(OSError, ValueError):
            counts = json.loads(file.read_text())
            sums.update(counts["sums"])
            fallbacks.update(counts["fallbacks"])
    return sums, fallbacks


def open_folder() -> None:
    """In the server's first process: a folder that its workers inherit, and the collector that reads it."""
    if FOLDER in os.environ:
        return
    from prometheus_client import REGISTRY

    folder = tempfile.TemporaryDirectory(prefix="eagle3-metrics-")
    REGISTRY.register(TreeCollector(Path(folder.name)))
    atexit.register(folder.cleanup)
    os.environ[FOLDER] = folder.name
