"""What the vLLM plugin's attention kernels take of a GPU's registers and shared memory, compiled for it without one.

    python -m benchmarks.kernel_registers                                # one JSON line a kernel and shape; sm_90
    python -m benchmarks.kernel_registers --capability 89 --shared 99    # another GPU: KiB that a program may have
    python -m benchmarks.kernel_registers --quick                        # the shapes that the tests hold

Each caller runs with tensors of the shape, and its launches are compiled instead, so that what is compiled is what a GPU
would be asked to run. `stack` is bytes a thread in local memory: a register that did not fit was spilled there. Triton and
its assembler are all that it needs; figures are of the Triton that is installed.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from benchmarks.gpu.plugin_ways import KERNEL, load_kernel

TYPES = {
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.float32: "*fp32",
    torch.int8: "*i8",
    torch.int32: "*i32",
}
# rows, query heads, key-value heads, head size, requests, dtype
QUICK = [(rows, 32, 8, 128, batch, torch.bfloat16) for rows, batch in ((17, 1), (61, 64))]
SHAPES = [
    *[(rows, 32, 8, 128, batch, torch.bfloat16) for rows in (17, 61) for batch in (1, 64)],
    *[(rows, 32, 8, 128, 1, torch.bfloat16) for rows in (1, 4, 10)],
    *[(rows, 9, 3, 64, 1, torch.bfloat16) for rows in (17, 61)],
    *[(17, heads, 8, dim, 1, torch.bfloat16) for heads, dim in ((64, 128), (8, 128), (24, 96), (32, 80), (32, 256))],
    *[(rows, 32, 8, 128, 1, dtype) for dtype in (torch.float16, torch.float32) for rows in (17, 61)],
]


class Recorder:
    """Stands where a kernel does and notes how it is launched."""

    def __init__(self, kernel: Any) -> None:
        self.kernel, self.launches = kernel, list[tuple[tuple[Any, ...], dict[str, Any]]]()

    def __getitem__(self, grid: Any) -> Callable[..., None]:
        return lambda *args, **options: self.launches.append((args, options))


def compiled(kernel: Any, args: tuple[Any, ...], options: dict[str, Any], capability: int = 90) -> dict[str, int]:
    """Registers, shared memory and stack of one launch, specialised as Triton would at run time."""
    import triton  # type: ignore[import-untyped, unused-ignore]
    from triton.backends.compiler import GPUTarget  # type: ignore[import-untyped, unused-ignore]
    from triton.compiler import ASTSource  # type: ignore[import-untyped, unused-ignore]

    names, unspecial = kernel.arg_names, {*(kernel.do_not_specialize or ())}
    signature, constants, hints = {}, {}, {}
    for place, (name, value) in enumerate(zip(names, args, strict=False)):
        if isinstance(value, torch.Tensor):
            signature[name] = TYPES[value.dtype]
            hints[(place,)] = [["tt.divisibility", 16]]
        elif isinstance(value, float):
            signature[name] = "fp32"
        elif value == 1 and name not in unspecial:
            signature[name], constants[name] = "constexpr", 1
        else:
            signature[name] = "i32"
            if value % 16 == 0 and name not in unspecial:
                hints[(place,)] = [["tt.divisibility", 16]]
    for name in names[len(args) :]:
        signature[name], constants[name] = "constexpr", options[name]
    constants = {name: value for name, value in constants.items() if name in names}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=hints)
    told = {name: value for name, value in options.items() if name.startswith("num_")}
    made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=told)
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(made.asm["cubin"])
        file.flush()
        command = [tools / "cuobjdump", "-res-usage", file.name]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", said)
    assert found is not None, said
    return {"registers": int(found[1]), "stack": int(found[2]), "shared": made.metadata.shared}


def launches(block: ModuleType, split: ModuleType, shape: tuple[Any, ...], shared: int) -> dict[str, Recorder]:
    """A verify pass over 2,048 keys a request, as the plugin calls both kernels."""
    rows, heads, kv_heads, dim, batch, dtype = shape
    found = {"block": Recorder(block._merged_kernel), "split": Recorder(split._split_kernel)}
    found["combine"] = Recorder(split._combine_kernel)
    kept = block._merged_kernel, split._split_kernel, split._combine_kernel
    block._merged_kernel, split._split_kernel, split._combine_kernel = found.values()
    try:
        q = torch.empty(batch, rows, heads, dim, dtype=dtype)
        k, mask = torch.empty(batch, rows, kv_heads, dim, dtype=dtype), torch.empty(batch, rows, rows, dtype=torch.int8)
        block.merged(q, k, k, mask, q, torch.empty(heads, batch * rows).T.unflatten(0, (batch, rows)), 1.0, out=q)
        keys, values = torch.empty(1, 16, kv_heads, 2 * dim, dtype=dtype).split(dim, dim=-1)
        plan = split.Plan.of(batch, rows, heads, kv_heads, dim, dtype, 2048, split.Gpu(132, shared))
        scratch = split.Scratch.make([(plan, batch * rows)], heads, dim, torch.device("cpu"))
        table, prefix = torch.empty(batch, 128, dtype=torch.int32), torch.empty(batch, dtype=torch.int32)
        at = mask, keys, values, table, prefix, 1.0, plan, scratch
        split.paged_tree_attention(q, k, k, *at, q)
        flat, starts = [x.flatten(0, 1) for x in (q, k, k)], torch.empty(batch + 1, dtype=torch.int32)
        split.paged_tree_attention(*flat, *at, flat[0], starts)
    finally:
        block._merged_kernel, split._split_kernel, split._combine_kernel = kept
    return found


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the shapes that the tests hold")
    parser.add_argument("--capability", type=int, default=90, help="of the GPU, as 90 (default: %(default)s)")
    parser.add_argument("--shared", type=int, default=227, help="KiB that a program may have (default: %(default)s)")
    told = parser.parse_args(arguments)
    block, split = (load_kernel(KERNEL.with_name(name)) for name in ("tree_block.py", "split_kv.py"))
    for shape in QUICK if told.quick else SHAPES:
        rows, heads, kv_heads, dim, batch, dtype = shape
        for name, recorder in launches(block, split, shape, told.shared << 10).items():
            for args, options in recorder.launches:
                row = {"kernel": name, "rows": rows, "heads": f"{heads}/{kv_heads}", "head_dim": dim, "batch": batch}
                row |= {"dtype": str(dtype).removeprefix("torch."), "warps": options["num_warps"]}
                row["varlen"] = options.get("VARLEN", False)
                print(json.dumps(row | compiled(recorder.kernel, args, options, told.capability)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
