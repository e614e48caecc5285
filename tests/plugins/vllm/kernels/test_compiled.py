"""The kernels as Triton and its ptxas make them for an H100: no thread may spill what it works on to memory."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")

ROOT = Path(__file__).resolve().parents[4]
# a depth of a draft by the sampler's noise, of 32 and of 53 bits, mapped to the target's ids and not
NOISY = """
import json
import torch
from benchmarks.kernel_registers import compile_only, usage

compiled = compile_only(90)
from eagle3_vllm.kernels.expand import expand
from eagle3_vllm.kernels.noise import SharedNoise, gumbel_in_triton
from eagle3_vllm.kernels.pool import DraftBuffers, DraftShape

slots, prefix = torch.zeros(8, dtype=torch.int64), torch.zeros(8, dtype=torch.int32)
for vocab, ids in ((32000, torch.zeros(32000, dtype=torch.int64)), (128256, None)):
    draft, logits = DraftBuffers.make(8, DraftShape(10, 2, vocab), "cpu"), torch.zeros(80, vocab, dtype=torch.bfloat16)
    for wide in (False, True):
        noise = SharedNoise(torch.zeros(8), slots, wide)
        expand(draft, 1, logits[:8], prefix, ids, None, noise, slots)
        expand(draft, 2, logits, prefix, ids, None, noise, slots)
        gumbel_in_triton(slots, slots, 4096, wide)
for kernel in compiled:
    print(json.dumps({"kernel": kernel.name, **usage(kernel)}))
"""


pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Triton compiles on Linux alone")


def compiled_rows(folder: Path, *command: str) -> list[dict[str, Any]]:
    """What a script of this interpreter prints of the kernels that it compiles."""
    folders = (str(ROOT), str(ROOT / "plugins"), os.environ.get("PYTHONPATH"))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, folders))}
    environment |= {"TRITON_CACHE_DIR": str(folder), "TRITON_INTERPRET": "0"}
    done = subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_no_kernel_spills_on_an_h100(tmp_path: Path) -> None:
    # the largest trees and vocabulary of use
    rows = compiled_rows(tmp_path, "-m", "benchmarks.kernel_registers", "--quick")
    # one a function, two for `expand` and for split attention, one for a tree's block
    assert len({row["kernel"] for row in rows}) == 10
    assert not [row for row in rows if row["stack"] or row["shared"] > 227 << 10], rows


def test_nor_do_those_that_go_by_the_samplers_noise(tmp_path: Path) -> None:
    rows = compiled_rows(tmp_path, "-c", NOISY)
    assert {row["kernel"] for row in rows} == {"_chunk_kernel", "_grow_kernel", "_gumbel_kernel"}
    assert not [row for row in rows if row["stack"]], rows
