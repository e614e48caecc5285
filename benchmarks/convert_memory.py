"""Converting a drafter of a gigabyte: peak memory above the interpreter's, and time against a plain copy of its bytes.

    python -m benchmarks.convert_memory --out benchmarks/results/convert-memory.json

The drafter is made for the measurement (random bf16 weights of the shape of a Llama-3.1-70B drafter, cut to the size wanted). Each
side runs in a process of its own, in turn, `--repeats` times, and every file is read once before: copy = cp of the same
bytes; rename = eagle3-convert --no-parity; proof = with parity. Peak = the process's greatest resident set above that of
a process that imports the same modules and does nothing.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import write_json
from eagle3_serving.checkpoint.dialects import DIALECTS
from eagle3_serving.checkpoint.facts import TargetFacts
from eagle3_serving.checkpoint.neutral import AuxLayers, Neutral
from eagle3_serving.checkpoint.source import Source, StoredTensor, computed, in_memory
from eagle3_serving.checkpoint.write import write_safetensors
from eagle3_serving.drafter import DrafterConfig
from eagle3_serving.drafter.shapes import parameter_shapes

LAYERS = 80
_RUN = """
import resource, sys, time
from pathlib import Path
from eagle3_serving.checkpoint.convert import convert
begun = time.perf_counter()
if len(sys.argv) > 1:
    convert(sys.argv[1], Path(sys.argv[2]), to=sys.argv[3], num_target_layers={layers}, parity=sys.argv[4] == "proof")
print(time.perf_counter() - begun, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def make(folder: Path, gigabytes: float) -> Path:
    """A drafter of about `gigabytes` in the `eagle` dialect."""
    hidden = 4096
    fixed = 2 * (3 * hidden * hidden + 4 * hidden * hidden + 32000 * hidden + hidden * hidden)
    wide = max(1024, int((gigabytes * 1e9 - fixed) / 2 / (3 * hidden)) // 256 * 256)
    config = DrafterConfig(hidden, wide, 32, 8, 128, 128256, 32000, hidden, (2, LAYERS // 2, LAYERS - 3))
    torch.manual_seed(0)
    noise = torch.randn(1 << 20, dtype=torch.bfloat16) * 0.02
    tensors = {name: _random(name, shape, noise) for name, shape in parameter_shapes(config).items()}
    del tensors["embed_tokens.weight"]
    aux = AuxLayers(config.aux_layers, "boundary", "made", default=True)
    source = Source(folder, {}, {}, {}, ())
    neutral = Neutral("eagle", source, config, aux, tensors, torch.arange(32000) * 4, {}, "own")
    write = DIALECTS["eagle"].write
    assert write is not None
    output = write(neutral, TargetFacts(LAYERS), "bfloat16")
    folder.mkdir()
    write_safetensors(folder / "model.safetensors", output.tensors, {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(output.config))
    return folder


def _random(name: str, shape: tuple[int, ...], noise: torch.Tensor) -> StoredTensor:
    if len(shape) == 1:
        return in_memory(name, torch.ones(shape, dtype=torch.bfloat16))
    row = shape[1]

    def rows(start: int, stop: int) -> torch.Tensor:
        begins = ((i * 7919) % (len(noise) - row) for i in range(start, stop))
        return torch.stack([noise[begin : begin + row] for begin in begins])

    lazy = computed(name, torch.bfloat16, shape, lambda: noise)
    return StoredTensor(lazy.name, lazy.dtype, lazy.shape, rows)


def convert_once(source: Path, destination: Path, to: str, proof: str) -> tuple[float, int]:
    """Seconds of the conversion, and the process's peak resident set in bytes."""
    argv = [sys.executable, "-c", _RUN.format(layers=LAYERS), str(source), str(destination), to, proof]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    seconds, peak = done.stdout.split()[-2:]
    return float(seconds), int(peak) * 1024


def copy_once(source: Path, destination: Path) -> float:
    begun = time.perf_counter()
    subprocess.run(["cp", "-r", str(source), str(destination)], check=True)
    return time.perf_counter() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=1.0)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--to", default="sglang")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    idle = subprocess.run([sys.executable, "-c", _RUN], capture_output=True, text=True, check=True).stdout.split()
    interpreter = int(idle[-1]) * 1024
    times: dict[str, list[float]] = {"copy": [], "rename": [], "proof": []}
    peaks: dict[str, list[int]] = {"rename": [], "proof": []}
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as folder:
        source, made = make(Path(folder) / "source", args.gigabytes), Path(folder) / "made"
        size = (source / "model.safetensors").stat().st_size
        for repeat in range(args.repeats + 1):  # the first round only warms the files
            for side in ("copy", "rename", *(["proof"] if repeat == 1 else [])):
                if side == "copy":
                    seconds = copy_once(source, made)
                else:
                    seconds, peak = convert_once(source, made, args.to, side)
                    peaks[side].append(peak - interpreter)
                if repeat:
                    times[side].append(seconds)
                shutil.rmtree(made)
    ratios = [rename / copy for rename, copy in zip(times["rename"], times["copy"], strict=True)]
    record: dict[str, Any] = {
        "bytes": size,
        "to": args.to,
        "interpreter_mb": round(interpreter / 1e6, 1),
        "copy_s": [round(t, 3) for t in times["copy"]],
        "rename_s": [round(t, 3) for t in times["rename"]],
        "rename_over_copy": {"median": round(statistics.median(ratios), 3), "all": [round(r, 3) for r in ratios]},
        "rename_peak_mb": round(max(peaks["rename"]) / 1e6, 1),
        "proof_s": [round(t, 1) for t in times["proof"]],
        "proof_peak_mb": round(max(peaks["proof"]) / 1e6, 1),
    }
    print(json.dumps(record, indent=1))
    if args.out:
        command = f"python -m benchmarks.convert_memory --gigabytes {args.gigabytes:g} --repeats {args.repeats} --to {args.to}"
        write_json(args.out, {"command": command, **record})


if __name__ == "__main__":
    main()
