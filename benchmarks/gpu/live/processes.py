"""An engine's process as its master sees it: started, asked with a time limit, ended with all its children."""

import json
import os
import select
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from benchmarks.gpu.sink import Unavailable
from eagle3_serving import __version__
from eagle3_serving.errors import InputError
from eagle3_serving.serve.server import last_lines
from eagle3_serving.serve.sglang import sglang_python

ROOT = Path(__file__).resolve().parents[3]
PATIENCE = 5.0  # seconds between asking a process to end and ending it


class EngineError(Exception):
    """What an engine failed of, in one line."""


def interpreter(engine: str, told: str) -> str:
    """A Python that has the engine: `told`, this one, or the one that the project's servers use. Raises Unavailable."""
    tried = list(filter(None, [told, sys.executable]))
    if engine == "sglang":
        with suppress(InputError):
            tried.append(str(sglang_python()))
    code = f"import importlib.util, sys; sys.exit(importlib.util.find_spec('{engine}') is None)"
    for python in tried:
        with suppress(OSError):
            if subprocess.run([python, "-c", code], check=False, capture_output=True).returncode == 0:
                return python
    raise Unavailable(
        f"no {engine} in {' or '.join(tried)}: --engine-python names a Python that has it, or PYTHONPATH a folder"
    )


def plugin_site(folder: Path) -> Path:
    """A folder that tells an engine of this checkout's plugins, for a Python where the project is not installed."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    site = folder / f"eagle3_serving-{__version__}.dist-info"
    site.mkdir(parents=True, exist_ok=True)
    (site / "METADATA").write_text(f"Metadata-Version: 2.1\nName: eagle3-serving\nVersion: {__version__}\n")
    lines = []
    for group, points in project["entry-points"].items():
        lines += [f"[{group}]", *(f"{name} = {target}" for name, target in points.items()), ""]
    (site / "entry_points.txt").write_text("\n".join(lines))
    return folder


class EngineUnavailable(EngineError):
    """This version has no such engine: nothing is wrong."""


class EngineProcess:
    """`spec` and `environment` as the child needs them; everything that it prints is in `log`."""

    def __init__(
        self, python: str, spec: dict[str, Any], environment: Mapping[str, str], file: Path, log: Path
    ) -> None:
        self.log, self._left = log, b""
        file.write_text(json.dumps(spec), encoding="utf-8")
        self._answers, theirs = os.pipe()
        try:
            with log.open("wb") as output:
                self._process = subprocess.Popen(
                    [python, "-m", "benchmarks.gpu.live.child", str(file), str(theirs)],
                    cwd=ROOT,
                    stdin=subprocess.PIPE,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env=dict(environment),
                    pass_fds=(theirs,),
                    start_new_session=True,  # its workers end with it
                )
        finally:
            os.close(theirs)
        self.started = time.monotonic()

    def ask(self, seconds: float, **order: Any) -> dict[str, Any]:
        """The answer to an order. Raises EngineError where there is none in time, the process ends, or it fails,
        EngineUnavailable where there is none of the kind."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(order).encode() + b"\n")
            self._process.stdin.flush()
        except OSError:
            raise EngineError(self.last_words("the process ended")) from None
        return self.answer(seconds)

    def answer(self, seconds: float) -> dict[str, Any]:
        until = time.monotonic() + seconds
        while b"\n" not in self._left:
            ready, _, _ = select.select([self._answers], [], [], max(0.0, until - time.monotonic()))
            if not ready:
                raise EngineError(self.last_words(f"no answer in {seconds:.0f} s"))
            part = os.read(self._answers, 1 << 16)
            if not part:
                raise EngineError(self.last_words("the process ended"))
            self._left += part
        line, self._left = self._left.split(b"\n", 1)
        answer: dict[str, Any] = json.loads(line)
        if "unavailable" in answer:
            raise EngineUnavailable(answer["unavailable"])
        if "error" in answer:
            raise EngineError(answer["error"])
        told: dict[str, Any] = answer["ok"]
        return told

    def poll(self) -> bool:
        """Is there an answer, or an end?"""
        return bool(self._left or select.select([self._answers], [], [], 0)[0])

    def last_words(self, what: str) -> str:
        words = last_lines(self.log, 2)
        return f"{what}; its log ends: {' | '.join(words) or 'with nothing'}"[:400]

    def end(self) -> None:
        """Safe to call twice."""
        for how in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, how)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(PATIENCE)
                break
        with suppress(ProcessLookupError):  # workers can outlive their leader
            os.killpg(self._process.pid, signal.SIGKILL)
        if self._process.stdin is not None:
            with suppress(OSError):
                self._process.stdin.close()
        with suppress(OSError):
            os.close(self._answers)
            self._answers = os.open(os.devnull, os.O_RDONLY)
