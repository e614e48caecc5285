"""Run in a process of its own: what the kernels become on an H100 (sm_90), without one.

Every function is called as an engine calls it; in the place of a launch Triton compiles, and its ptxas says what a thread
takes. Prints one JSON line a kernel.
"""

import json
import re
import subprocess
import sys
import tempfile
from types import SimpleNamespace
from typing import Any

import torch
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase
from triton.runtime.jit import JITFunction

# vLLM has no Triton to give where no GPU is
sys.modules["vllm.triton_utils"] = SimpleNamespace(tl=tl, triton=triton)  # type: ignore[assignment]

from benchmarks.tree_kernels import Shape, cases  # noqa: E402


class Sm90(DriverBase):  # type: ignore[misc]
    """A driver that knows its target, and launches nothing."""

    def __init__(self) -> None:
        pass

    @classmethod
    def is_active(cls) -> bool:
        return True

    def map_python_to_cpp_type(self, ty: str) -> str:
        return "int"

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def get_device_interface(self) -> object:
        return torch.cpu

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int = 0) -> int:
        return 0

    def get_benchmarker(self) -> object:
        raise NotImplementedError

    def get_empty_cache_for_benchmark(self) -> None:
        raise NotImplementedError

    def clear_cache(self, cache: object) -> None:
        pass


def usage(ptx: str) -> dict[str, int]:
    """Registers and bytes of spill a thread."""
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        # the name is Triton's: it is its newest, which knows every PTX that it writes
        ptxas = triton.knobs.nvidia.ptxas_blackwell.path
        done = subprocess.run(
            [ptxas, "-v", "--gpu-name=sm_90a", file.name, "-o", file.name + ".o"],
            capture_output=True,
            text=True,
            check=False,
        )
    found = re.search(r"(\d+) bytes spill stores.*?Used (\d+) registers", done.stderr, re.DOTALL)
    assert found, done.stderr
    return {"registers": int(found[2]), "spilled": int(found[1])}


def main() -> None:
    shape = Shape(nodes=int(sys.argv[1]), vocab=int(sys.argv[2]))
    triton.runtime.driver.set_active(Sm90())
    compiled: list[Any] = []
    run = JITFunction.run

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        compiled.append(run(self, *args, grid=grid, warmup=True, **kwargs))

    JITFunction.run = compile_only
    for case in cases("cpu", shape):
        compiled.clear()
        case.call()
        for kernel in compiled:
            row = {"case": case.name, "kernel": kernel.name, "warps": kernel.metadata.num_warps}
            print(json.dumps(row | usage(kernel.asm["ptx"]) | {"shared": kernel.metadata.shared}), flush=True)


if __name__ == "__main__":
    main()
