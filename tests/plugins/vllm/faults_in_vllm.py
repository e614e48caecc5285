"""Run as a program: real vLLM with one fault at a time, and what the plugin's registration then says and leaves changed.

Prints one JSON object: `changed`, what a registration without fault changes; `faults`, by kind and fault what was said and what
was changed (`changed` again, as far as it differs from before).
"""

import ast
import importlib
import inspect
import json
import logging
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import eagle3_vllm

from eagle3_serving.notice import SAID
from eagle3_serving.patches import Patches

PLUGIN = Path(eagle3_vllm.__file__).parent
ABSENT = "absent"


class Said(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def forget() -> None:
    """Our modules will be imported anew."""
    for name in [name for name in sys.modules if name.startswith("eagle3_vllm.")]:
        del sys.modules[name]
        vars(eagle3_vllm).pop(name.split(".")[1], None)  # where `from eagle3_vllm import ...` looks first
    os.environ.pop(SAID, None)


def scan() -> dict[str, int]:
    """The identity of every attribute of vLLM's modules and classes, and what stands in its registries."""
    found: dict[str, int] = {}
    for module_name, module in list(sys.modules.items()):
        if not module_name.startswith("vllm"):
            continue
        for name, value in list(vars(module).items()):
            found[f"{module_name}:{name}"] = id(value)
            if isinstance(value, type) and value.__module__ == module_name:
                found |= {f"{module_name}:{name}.{key}": id(one) for key, one in vars(value).items()}
    from prometheus_client import REGISTRY
    from vllm import ModelRegistry
    from vllm.v1.attention.backends import registry

    found |= {f"ModelRegistry {name}": id(model) for name, model in ModelRegistry.models.items()}
    found |= {f"override of {backend.name}": id(path) for backend, path in registry._ATTN_OVERRIDES.items()}
    found["collectors of metrics"] = len(REGISTRY._collector_to_names)
    found |= {f"environment {name}": hash(value) for name, value in os.environ.items() if name != SAID}
    return found


def differing(before: dict[str, int], after: dict[str, int]) -> list[str]:
    return sorted(key for key in before.keys() | after.keys() if before.get(key) != after.get(key))


# ---- faults: each is a context in which vLLM, or a module of ours, is not as known


def imported() -> Iterator[tuple[str, str]]:
    """Every name that a module of the plugin takes from vLLM when it is imported on a CPU."""
    for path in sorted(PLUGIN.rglob("*.py")):
        if path.stem in ("cuda", "flashinfer_backend", "triton_backend"):
            continue
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "vllm":
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


def signatures() -> Iterator[tuple[str, Any, str]]:
    """Of all that compat looks at: where it is found, its owner and its name there."""
    compat = importlib.import_module("eagle3_vllm.compat")
    for signature in compat.BOTH_RUNNERS + compat.SAMPLING + compat.FP8 + compat.TREES:
        function = inspect.unwrap(signature.callable)
        owner: Any = sys.modules[function.__module__]
        *path, name = function.__qualname__.split(".")
        for part in path:
            owner = getattr(owner, part)
        yield signature.where, owner, name


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
def version(text: str) -> Iterator[None]:
    import vllm

    held, vllm.__version__ = vllm.__version__, text
    try:
        yield
    finally:
        vllm.__version__ = held


def without_fault(pipe: Any) -> None:
    before = scan()
    eagle3_vllm.register()
    pipe.send(differing(before, scan()))


def main() -> None:
    os.environ["EAGLE3_TREES"] = "0;3,1,4;5,8,17"  # with these the scheduler is changed too
    handler = Said()
    logging.getLogger("vllm.eagle3").addHandler(handler)
    logging.getLogger("vllm.eagle3").propagate = False
    compat = importlib.import_module("eagle3_vllm.compat")
    compat.model_runner()
    for name in importlib.import_module("eagle3_vllm.registration").NEEDED:
        importlib.import_module(f"eagle3_vllm.{name}")

    ours, theirs = multiprocessing.get_context("fork").Pipe()
    child = multiprocessing.get_context("fork").Process(target=without_fault, args=(theirs,))
    child.start()
    touched: list[str] = ours.recv()
    child.join()

    modules = sorted(name for name in sys.modules if name.startswith("eagle3_vllm."))
    faults: dict[str, dict[str, Callable[[], Any]]] = {
        "import": {f"{module}.{name}": lambda m=module, n=name: without(m, n) for module, name in imported()},  # type: ignore[misc]
        "signature": {where: lambda o=owner, n=name: changed(o, n, False) for where, owner, name in signatures()},  # type: ignore[misc]
        "gone": {
            where: lambda o=owner, n=name: changed(o, n, True)  # type: ignore[misc]
            for where, owner, name in signatures()
            if not inherited(owner, name)  # else it is still there
        },
        "runner": {name: lambda n=name: changed(compat.model_runner(), n, True) for name in compat.RUNNER},  # type: ignore[misc]
        "module": {name: lambda n=name: Broken(n) for name in modules},  # type: ignore[misc]
        "version": {text: lambda t=text: version(t) for text in ("0.31.0", "0.34.0", "dev", "1.0+cpu")},  # type: ignore[misc]
        # last: the first number past all changes registers
        "patch": {str(count): lambda c=count: failing_at(c) for count in range(40)},  # type: ignore[misc]
    }
    found: dict[str, dict[str, Any]] = {}
    clean = scan()
    for kind, planted in faults.items():
        found[kind] = {}
        for fault, plant in planted.items():
            handler.lines.clear()
            forget()
            with plant():
                eagle3_vllm.register()
            after = scan()
            left = [key for key in touched if after.get(key) != clean.get(key)]
            found[kind][fault] = {"said": list(handler.lines), "left": left}
            if left:  # it was registered: what follows would be measured against that
                break
    print(json.dumps({"changed": touched, "faults": found}))


if __name__ == "__main__":
    main()
