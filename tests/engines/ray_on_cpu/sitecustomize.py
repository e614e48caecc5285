"""For tests only: lets vLLM's CPU backend run its ranks by Ray, which vLLM 0.32 knows for GPUs alone.

Python imports this by itself where its folder is on PYTHONPATH. A rank is then what Ray calls a GPU: `ray.init(num_gpus=...)`
says how many there are. Everything that `mrv2_on_cpu` does is done too.
"""

import importlib.abc
import importlib.machinery
import importlib.util
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

_PLATFORM = "vllm.platforms.cpu"
_SERVICES = ("/ray/dashboard/", "/ray/autoscaler/", "/ray/_private/log_monitor", "/ray/_private/runtime_env/")


class _Named(importlib.abc.MetaPathFinder):
    """Finds vLLM's CPU platform as ever, and names what Ray counts when it has been run."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != _PLATFORM:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        assert spec is not None and spec.loader is not None
        loader: Any = spec.loader
        run = loader.exec_module

        def exec_module(module: Any) -> None:
            run(module)
            module.CpuPlatform.ray_device_key = "GPU"

        loader.exec_module = exec_module
        return spec


# Ray's own services must start within seconds: torch and Triton are for its workers
if not any(service in part for part in sys.orig_argv for service in _SERVICES):
    sys.meta_path.insert(0, _Named())
    runpy.run_path(str(Path(__file__).parent.parent / "mrv2_on_cpu" / "sitecustomize.py"))
