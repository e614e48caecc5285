"""Run as a program: real vLLM with one fault at a time, and what the plugin's registration then says and leaves changed.

Prints one JSON object: `changed`, what a registration without fault changes; `faults`, by kind and fault what was said and what
was changed (`changed` again, as far as it differs from before).
"""

import importlib
import inspect
import json
import logging
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import eagle3_vllm
import vllm
from planted_faults import (
    Broken,
    Said,
    attributes,
    changed,
    differing,
    failing_at,
    forget,
    imported,
    inherited,
    version,
    without,
)

from eagle3_serving.notice import SAID

# what a registration imports on a CPU; `feature_store` is loaded by vLLM, where it is named
PATHS = [
    path
    for path in sorted(Path(eagle3_vllm.__file__).parent.rglob("*.py"))
    if path.stem not in ("cuda", "flashinfer_backend", "triton_backend", "feature_store")
]


def scan() -> dict[str, int]:
    """The identity of every attribute of vLLM's modules and classes, and what stands in its registries."""
    found = attributes("vllm")
    from prometheus_client import REGISTRY
    from vllm import ModelRegistry
    from vllm.v1.attention.backends import registry

    found |= {f"ModelRegistry {name}": id(model) for name, model in ModelRegistry.models.items()}
    found |= {f"override of {backend.name}": id(path) for backend, path in registry._ATTN_OVERRIDES.items()}
    found["collectors of metrics"] = len(REGISTRY._collector_to_names)
    found |= {f"environment {name}": hash(value) for name, value in os.environ.items() if name != SAID}
    return found


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
        "import": {
            f"{module}.{name}": lambda m=module, n=name: without(m, n) for module, name in imported(PATHS, "vllm")
        },  # type: ignore[misc]
        "signature": {where: lambda o=owner, n=name: changed(o, n, False) for where, owner, name in signatures()},  # type: ignore[misc]
        "gone": {
            where: lambda o=owner, n=name: changed(o, n, True)  # type: ignore[misc]
            for where, owner, name in signatures()
            if not inherited(owner, name)  # else it is still there
        },
        "runner": {name: lambda n=name: changed(compat.model_runner(), n, True) for name in compat.RUNNER},  # type: ignore[misc]
        "module": {name: lambda n=name: Broken(n) for name in modules},  # type: ignore[misc]
        "version": {text: lambda t=text: version(vllm, t) for text in ("0.31.0", "0.34.0", "dev", "1.0+cpu")},  # type: ignore[misc]
        # last: the first number past all changes registers
        "patch": {str(count): lambda c=count: failing_at(c) for count in range(40)},  # type: ignore[misc]
    }
    found: dict[str, dict[str, Any]] = {}
    clean = scan()
    for kind, planted in faults.items():
        found[kind] = {}
        for fault, plant in planted.items():
            handler.lines.clear()
            forget(eagle3_vllm)
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
