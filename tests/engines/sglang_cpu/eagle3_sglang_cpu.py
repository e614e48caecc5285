"""Runs at the start of every Python in `.venv-sglang`: lets stock SGLang run on a CPU, where its kernels have no build.

Test-only. `scripts/setup_env.py` points a .pth file here, so that `sgl_kernel` beside this file is found, and torchvision,
whose wheel is built for CUDA, can be imported beside a CPU build of torch.
"""

import importlib.abc
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


class TorchvisionOperators(importlib.abc.MetaPathFinder):
    """Declares, just before torchvision is imported, the operators its Python code expects from the missing library."""

    library: Any = None  # kept: an operator lives as long as its library

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname == "torchvision" and self.library is None:
            import torch

            self.library = torch.library.Library("torchvision", "FRAGMENT")
            for name in ("nms", "qnms"):
                self.library.define(name + _SCHEMA)
        return None


def install() -> None:
    sys.meta_path.insert(0, TorchvisionOperators())


install()
