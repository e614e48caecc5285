"""Run as a program: real SGLang with one fault at a time, and what the plugin then says, hooks and serves.

Prints one JSON object: `changed`, what SGLang's own functions become without a fault; by kind and fault, `said`, what was said,
`left`, what is changed, and `own`, whether SGLang's own worker, tree and memory are what its hooks give.
"""

import importlib
import json
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import eagle3_sglang
import sglang
from planted_faults import Broken, Said, attributes, changed, differing, forget, imported, inherited, version, without
from sglang.srt.plugins.hook_registry import HookRegistry

from eagle3_serving.notice import SAID

THEIRS = (5, 4, 8)


class EAGLEWorkerV2:
    """What SGLang would serve with."""


def by_the_hooks() -> bool:
    """Whether all that the hooks are asked for is SGLang's own."""
    hooks = importlib.import_module("eagle3_sglang.hooks")
    algorithm = SimpleNamespace(name="EAGLE3")
    arguments = SimpleNamespace(
        speculative_algorithm="EAGLE3", speculative_adaptive=False, pp_size=1, enable_dp_attention=False, device="cpu",
        page_size=1, attention_backend="triton", speculative_eagle_topk=4,
    )  # fmt: skip
    worker = hooks.create_worker(lambda *_: EAGLEWorkerV2, algorithm, arguments)
    tree = hooks.choose_trees(lambda *_: THEIRS, arguments, "LlamaForCausalLM")
    memory = hooks.reserve(lambda *_: 8, algorithm, arguments)
    return worker is EAGLEWorkerV2 and tree == THEIRS and memory == 8


def register() -> None:
    """As SGLang does in each of its processes."""
    eagle3_sglang.register()
    HookRegistry.apply_hooks()


def main() -> None:
    os.environ["EAGLE3_TREES"] = "0;3,4,6;5,4,12"
    handler = Said()
    logging.getLogger("eagle3_sglang").addHandler(handler)
    logging.getLogger("eagle3_sglang").propagate = False
    check = importlib.import_module("eagle3_sglang.compat_check")
    for name in check.NAMES + check.SAMPLED:
        importlib.import_module(name.module)
    importlib.import_module("eagle3_sglang.worker")
    modules = sorted(name for name in sys.modules if name.startswith("eagle3_sglang."))
    hooked = {f"{name.module}.{name.path}" for name in check.HOOKED}

    def owner_of(name: Any) -> tuple[Any, str]:
        owner: Any = importlib.import_module(name.module)
        *path, last = name.path.split(".")
        for part in path:
            owner = getattr(owner, part)
        return owner, last

    plugin = Path(eagle3_sglang.__file__).parent
    faults: dict[str, dict[str, Callable[[], Any]]] = {
        "version": {text: lambda t=text: version(sglang, t) for text in ("0.5.19", "0.6.0", "dev")},  # type: ignore[misc]
        "gone": {
            f"{name.module}.{name.path}": lambda o=owner, n=last: changed(o, n, True)  # type: ignore[misc]
            for name in check.NAMES
            for owner, last in [owner_of(name)]
            if not inherited(owner, last)  # else it is still there
        },
        "signature": {
            f"{name.module}.{name.path}": lambda o=owner, n=last: changed(o, n, False)  # type: ignore[misc]
            for name in check.NAMES
            if name.parameters
            for owner, last in [owner_of(name)]
        },
        "import": {
            f"{module}.{name}": lambda m=module, n=name: without(m, n)  # type: ignore[misc]
            for module, name in imported([plugin / "compat.py"], "sglang")
        },
        "module": {name: lambda n=name: Broken(n) for name in modules},  # type: ignore[misc]
    }
    clean = attributes("sglang")
    found: dict[str, dict[str, Any]] = {}
    for kind, planted in faults.items():
        found[kind] = {}
        for fault, plant in planted.items():
            handler.lines.clear()
            forget(eagle3_sglang)
            with plant():
                eagle3_sglang.register()
                hooks, own = sorted(HookRegistry._hooks), True
                if hooks:  # applied they would stand around what the fault changed
                    own = by_the_hooks()
            HookRegistry.reset()
            first = kind == "version" or fault in hooked
            found[kind][fault] = {"said": list(handler.lines), "hooks": hooks, "own": own, "first": first}
    changed_by_faults = differing(clean, attributes("sglang"))
    forget(eagle3_sglang)
    os.environ.pop(SAID, None)
    register()
    touched = [key for key in differing(clean, attributes("sglang")) if "hook_registry" not in key]
    print(json.dumps({"left": changed_by_faults, "changed": touched, "own": by_the_hooks(), "faults": found}))


if __name__ == "__main__":
    main()
