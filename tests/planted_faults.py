"""Faults planted in an engine or a plugin, one at a time, and what is left changed: for programs that run in the engine's
own environment."""

import ast
import importlib
import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from eagle3_serving.notice import SAID
from eagle3_serving.patches import Patches


class Said(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def forget(plugin: ModuleType) -> None:
    """Its modules will be imported anew, and its lines said again."""
    for name in [name for name in sys.modules if name.startswith(f"{plugin.__name__}.")]:
        del sys.modules[name]
        vars(plugin).pop(name.split(".")[1], None)  # where `from plugin import ...` looks first
    os.environ.pop(SAID, None)


def attributes(package: str) -> dict[str, int]:
    """The identity of every attribute of a package's modules and of their classes, by where it stands."""
    found: dict[str, int] = {}
    for module_name, module in list(sys.modules.items()):
        if module_name.split(".")[0] != package:
            continue
        for name, value in list(vars(module).items()):
            found[f"{module_name}:{name}"] = id(value)
            if isinstance(value, type) and value.__module__ == module_name:
                found |= {f"{module_name}:{name}.{key}": id(one) for key, one in vars(value).items()}
    return found


def differing(before: dict[str, int], after: dict[str, int]) -> list[str]:
    return sorted(key for key in before.keys() | after.keys() if before.get(key) != after.get(key))


# ---- faults: each is a context in which something is not as known


def imported(paths: Iterable[Path], package: str) -> Iterator[tuple[str, str]]:
    """Every name that these modules of a plugin take from an engine when they are imported."""
    for path in paths:
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == package:
                yield from ((str(node.module), alias.name) for alias in node.names)


@contextmanager
def without(module_name: str, name: str) -> Iterator[None]:
    module, submodule = importlib.import_module(module_name), f"{module_name}.{name}"
    held = {key: vars(module)[key] for key in (name, "__getattr__") if key in vars(module)}
    vars(module).pop(name, None)
    vars(module).pop("__getattr__", None)  # some of vLLM's names are found when they are asked for
    loaded = sys.modules.get(submodule)
    if loaded is not None:
        sys.modules[submodule] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        vars(module).update(held)
        if loaded is not None:
            sys.modules[submodule] = loaded


def other(*unknown: object) -> None: ...


@contextmanager
def changed(owner: Any, name: str, gone: bool) -> Iterator[None]:
    """An attribute that takes other parameters, or is not there."""
    held = vars(owner)[name]
    if gone:
        delattr(owner, name)
    else:
        setattr(owner, name, other)
    try:
        yield
    finally:
        setattr(owner, name, held)


def inherited(owner: Any, name: str) -> bool:
    return any(name in vars(base) for base in getattr(owner, "__mro__", ())[1:])


class Broken:
    """Finds one module, and cannot import it."""

    def __init__(self, name: str) -> None:
        self.name = name

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name == self.name:
            raise RuntimeError(f"{name} is broken")

    def __enter__(self) -> None:
        sys.meta_path.insert(0, self)  # type: ignore[arg-type]

    def __exit__(self, *_: object) -> None:
        sys.meta_path.remove(self)  # type: ignore[arg-type]


@contextmanager
def failing_at(count: int) -> Iterator[None]:
    """The change of that number raises, after it was made."""
    made = {name: vars(Patches)[name] for name in ("attribute", "undone_by")}
    left = [count]

    def counted(make: Callable[..., Any]) -> Callable[..., Any]:
        def patch(self: Patches, *args: Any) -> None:
            make(self, *args)
            if not left[0]:
                raise RuntimeError("planted")
            left[0] -= 1

        return patch

    for name, make in made.items():
        setattr(Patches, name, counted(make))
    try:
        yield
    finally:
        for name, make in made.items():
            setattr(Patches, name, make)


@contextmanager
def version(engine: ModuleType, text: str) -> Iterator[None]:
    held, engine.__version__ = engine.__version__, text  # type: ignore[attr-defined]
    try:
        yield
    finally:
        engine.__version__ = held  # type: ignore[attr-defined]
