"""One step in a process of its own; `plan.run_plan` starts it."""

import argparse
import ctypes
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.plan import STEPS, asked_of, inputs_of
from benchmarks.gpu.settings import Settings
from benchmarks.gpu.sink import Sink, Unavailable


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("step", choices=list(STEPS))
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(arguments)
    with suppress(OSError, AttributeError):  # Linux: a killed parent takes its step with it
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)
    settings = Settings.read(args.out / "settings.json")
    step = STEPS[args.step]
    torch.manual_seed(settings.seed)
    # PyTorch 2.11 asks cuDNN first on sm_90, which builds a plan of tens of milliseconds for every new length of the keys
    torch.backends.cuda.enable_cudnn_sdp(False)
    sink = Sink(args.out / f"{step.name}.jsonl", inputs_of(step, settings))
    begun = time.perf_counter()
    try:
        step.load().run(settings, sink, args.out)
    except Unavailable as reason:
        sink.end("unavailable", why=str(reason), seconds=round(time.perf_counter() - begun, 1))
        return 0
    wrong = [row["key"] for row in sink.rows if row.get("ok") is False]
    ending: dict[str, Any] = {"why": f"wrong: {', '.join(wrong[:5])}"} if wrong else {}
    asked = asked_of(step, settings)
    if asked:
        ending["asked"] = asked
    sink.end("wrong" if wrong else "done", seconds=round(time.perf_counter() - begun, 1), **ending)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
