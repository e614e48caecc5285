"""What the vLLM plugin's kernels take of a GPU's registers and shared memory, compiled for it without one.

Every function is called as an engine calls it; in the place of a launch Triton compiles. One JSON line a kernel and shape:
`stack` is bytes a thread in local memory, where a register that did not fit was spilled. Figures are of the Triton that is
installed.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

_EXAMPLES = """examples:
  python -m benchmarks.kernel_registers                                # sm_90
  python -m benchmarks.kernel_registers --capability 89 --shared 99    # another GPU: KiB that one program may have
  python -m benchmarks.kernel_registers --quick                        # the shapes that the tests hold
"""
# rows, query heads, key-value heads, head size, requests, dtype
QUICK = [(rows, 32, 8, 128, batch, torch.bfloat16) for rows, batch in ((17, 1), (61, 64))]
SHAPES = [
    *[(rows, 32, 8, 128, batch, torch.bfloat16) for rows in (17, 61) for batch in (1, 64)],
    *[(rows, 32, 8, 128, 1, torch.bfloat16) for rows in (1, 4, 10)],
    *[(rows, 9, 3, 64, 1, torch.bfloat16) for rows in (17, 61)],
    *[(17, heads, 8, dim, 1, torch.bfloat16) for heads, dim in ((64, 128), (8, 128), (24, 96), (32, 80), (32, 256))],
    *[(rows, 32, 8, 128, 1, dtype) for dtype in (torch.float16, torch.float32) for rows in (17, 61)],
]


def compile_only(capability: int) -> list[Any]:
    """From here on this process compiles for that GPU and launches nothing; what it compiles is added to the list."""
    import triton  # type: ignore[import-untyped, unused-ignore]
    import triton.language as tl  # type: ignore[import-untyped, unused-ignore]
    from triton.backends.compiler import GPUTarget  # type: ignore[import-untyped, unused-ignore]
    from triton.runtime.jit import JITFunction  # type: ignore[import-untyped, unused-ignore]

    # vLLM has no Triton to give where no GPU is
    sys.modules["vllm.triton_utils"] = SimpleNamespace(tl=tl, triton=triton)  # type: ignore[assignment]
    # all that compiling asks of a driver
    driver = SimpleNamespace(
        get_current_target=lambda: GPUTarget("cuda", capability, 32),
        get_current_device=lambda: 0,
        get_current_stream=lambda device=0: 0,
    )
    triton.runtime.driver.set_active(driver)
    compiled: list[Any] = []
    run = JITFunction.run

    def compiling(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        compiled.append(run(self, *args, grid=grid, warmup=True, **kwargs))

    JITFunction.run = compiling
    return compiled


def usage(kernel: Any) -> dict[str, int]:
    import triton

    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        command = [tools / "cuobjdump", "-res-usage", file.name]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", said)
    assert found is not None, said
    took = {"registers": int(found[1]), "stack": int(found[2]), "shared": kernel.metadata.shared}
    return {"warps": kernel.metadata.num_warps, **took}


def verify_attention(shape: tuple[Any, ...], shared: int) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Attention of a verify pass over 2,048 keys a request, in every way that the plugin has."""
    from eagle3_vllm.attention.split_kv import Gpu, Plan, Scratch, paged_tree_attention
    from eagle3_vllm.attention.tree_block import merged

    rows, heads, kv_heads, dim, batch, dtype = shape
    q, k = (torch.empty(batch, rows, count, dim, dtype=dtype) for count in (heads, kv_heads))
    mask, lse_AT = torch.empty(batch, rows, rows, dtype=torch.bool), torch.empty(heads, batch * rows)
    yield "block", lambda: merged(q, k, k, mask, q, lse_AT.T.unflatten(0, (batch, rows)), 1.0, out=q)
    keys, values = torch.empty(1, 16, kv_heads, 2 * dim, dtype=dtype).split(dim, dim=-1)
    plan = Plan.of(batch, rows, heads, kv_heads, dim, dtype, 2048, Gpu(132, shared))
    scratch = Scratch.make([(plan, batch * rows)], heads, dim, torch.device("cpu"))
    table, prefix = torch.empty(batch, 128, dtype=torch.int32), torch.empty(batch, dtype=torch.int32)
    at = mask, keys, values, table, prefix, 1.0, plan, scratch
    yield "split", lambda: paged_tree_attention(q, k, k, *at, q)
    flat, starts = [x.flatten(0, 1) for x in (q, k, k)], torch.empty(batch + 1, dtype=torch.int32)
    yield "split, varlen", lambda: paged_tree_attention(*flat, *at, flat[0], starts)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=_EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="the shapes that the tests hold")
    parser.add_argument("--capability", type=int, default=90, help="of the GPU (default: %(default)s)")
    parser.add_argument("--shared", type=int, default=227, help="KiB that a program may have (default: %(default)s)")
    told = parser.parse_args(arguments)
    compiled = compile_only(told.capability)
    from benchmarks.tree_kernels import Shape, cases

    for nodes, vocab in ((64, 128256),) if told.quick else ((16, 32000), (64, 128256)):
        for case in cases("cpu", Shape(nodes=nodes, vocab=vocab)):
            _print(compiled, case.call, {"case": case.name, "nodes": nodes, "vocab": vocab})
    for shape in QUICK if told.quick else SHAPES:
        rows, heads, kv_heads, dim, batch, dtype = shape
        row = {"rows": rows, "heads": f"{heads}/{kv_heads}", "head_dim": dim, "batch": batch}
        for name, call in verify_attention(shape, told.shared << 10):
            _print(compiled, call, {"case": name, **row, "dtype": str(dtype).removeprefix("torch.")})
    return 0


def _print(compiled: list[Any], call: Callable[[], Any], row: dict[str, Any]) -> None:
    compiled.clear()
    call()
    for kernel in compiled:
        print(json.dumps({"kernel": kernel.name, **row, **usage(kernel)}), flush=True)


if __name__ == "__main__":
    sys.exit(main())
