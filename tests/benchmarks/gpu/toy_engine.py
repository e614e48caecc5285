"""An engine for the tests of the race: it does what its name says, in a process of its own as real ones."""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu.live.load import Load
from benchmarks.gpu.sink import Unavailable


class Engine:
    def __init__(self, spec: dict[str, Any]) -> None:
        self.does, self.folder = spec["arguments"]["does"], Path(spec["arguments"]["folder"])
        print("the engine's own words", flush=True)
        if self.does == "fails at start":
            raise RuntimeError("no such kernel\nand much more")
        if self.does == "is not in this version":
            raise Unavailable("version 0 has none")
        if self.does == "leaves at start":
            print("ValueError: last words", flush=True)
            os._exit(3)
        if self.does == "hangs at start":
            time.sleep(600)
        worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        with (self.folder / "workers").open("a") as file:
            file.write(f"{worker.pid}\n")
        self.begun = time.monotonic()

    def about(self) -> dict[str, Any]:
        return {"version": "0", "graphs": "NONE"}

    def load(self, prompts: Sequence[Sequence[int]], in_flight: int, tokens: int) -> dict[str, Any]:
        with (self.folder / "order").open("a") as file:
            file.write(f"{self.does} {in_flight} {tokens} {len(prompts)}\n")
        if self.does == "fails at two" and in_flight == 2:
            raise RuntimeError("out of memory")
        if self.does == "hangs at two" and in_flight == 2:
            time.sleep(600)
        answers = [[(prompt[0] + place) % 7 for place in range(tokens)] for prompt in prompts]
        step = {"drafts": 4.0}.get(self.does, 2.0) * in_flight
        drafts = 10 if self.does == "drafts" else 0
        return Load(answers, 1.0, [step, step, 5 * step], 20 if drafts else 10, 10, drafts, 3 * drafts).to_json()

    def detail(self, prompts: Sequence[Sequence[int]], in_flight: int) -> dict[str, Any]:
        return {"parts_ms": {"propose": 1.0}, "launches": 21.0, "memcpys": 6.0, "syncs": 0.0}
