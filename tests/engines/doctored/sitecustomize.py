"""For tests only: an engine that is not as known, in every process of its server.

`DOCTORED` names a function as module:Class.name. It takes other parameters than it did, and works as before; with a - before
the name it is gone. Python imports this by itself where its folder is on PYTHONPATH.
"""

import importlib.abc
import importlib.util
import os
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

NAMED = os.environ.get("DOCTORED", "")
MODULE, _, PATH = NAMED.removeprefix("-").partition(":")


def doctor(module: ModuleType) -> None:
    *path, name = PATH.split(".")
    owner: Any = module
    for part in path:
        owner = getattr(owner, part)
    original = vars(owner)[name]
    if NAMED.startswith("-"):
        delattr(owner, name)
    else:
        setattr(owner, name, lambda *unknown, **others: original(*unknown, **others))


class Finder(importlib.abc.MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != MODULE:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        assert spec is not None and spec.loader is not None
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            doctor(module)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


if MODULE:
    sys.meta_path.insert(0, Finder())
