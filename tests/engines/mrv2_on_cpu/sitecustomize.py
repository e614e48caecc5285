"""For tests only: Triton's interpreter stands in for a GPU, so that vLLM's Model Runner V2 runs on a CPU.

Python imports this by itself where its folder is on PYTHONPATH. Triton finds no driver on a machine without a GPU;
a "cpu" one that answers what it is asked lets `triton.jit` make interpreted functions, which is all that runs here.
"""

import os
from collections.abc import Callable
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"
os.environ.setdefault("TRITON_DEFAULT_BACKEND", "cpu")


def _add_cpu_driver() -> None:
    import torch
    import triton.backends
    from triton.backends.compiler import GPUTarget
    from triton.backends.driver import DriverBase

    class CpuDriver(DriverBase):  # type: ignore[misc]
        def __init__(self) -> None:
            pass

        @classmethod
        def is_active(cls) -> bool:
            return True

        def map_python_to_cpp_type(self, ty: str) -> str:
            return "int"

        def get_current_target(self) -> GPUTarget:
            return GPUTarget("cpu", 0, 1)

        def get_active_torch_device(self) -> torch.device:
            return torch.device("cpu")

        def get_device_interface(self) -> object:
            return torch.cpu

        def get_current_device(self) -> int:
            return 0

        def get_current_stream(self, device: int = 0) -> int:
            return 0

        def get_benchmarker(self) -> object:
            return lambda function, quantiles=None, **_: (function(), [0.0] * 3)[1]

        def get_empty_cache_for_benchmark(self) -> None:
            return None

        def clear_cache(self, cache: object) -> None:
            pass

    known = triton.backends.backends
    made_of = type(next(iter(known.values())))
    known["cpu"] = made_of(compiler=known["nvidia"].compiler, driver=CpuDriver)


def _change_the_language_once() -> None:
    """The interpreter looks through all of Triton's language to change it, at each launch and in each function that a kernel
    calls: a fifth of vLLM's time. Here it stays changed."""
    from triton.runtime import interpreter

    change, changed = interpreter._patch_lang, {}

    def once(function: Callable[..., Any]) -> Any:
        module = function.__globals__
        if id(module) not in changed:
            changed[id(module)] = module
            change(function)
        return interpreter._LangPatchScope()  # of nothing to restore

    interpreter._patch_lang = once


_add_cpu_driver()
_change_the_language_once()
