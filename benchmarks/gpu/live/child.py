"""One engine in a process of its own: `python -m benchmarks.gpu.live.child SPEC.json FD`.

Orders come as JSON lines on stdin, answers go as JSON lines to the descriptor FD, so that whatever an engine prints is
only its log. It ends with stdin: a parent that dies leaves no engine behind.
"""

import importlib
import json
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, TextIO

from benchmarks.gpu.sink import Unavailable
from benchmarks.gpu.timing import first_line


class Engine(Protocol):
    """What an engine's module gives as `Engine(spec)`. In the spec: `module`, `device` (cpu or cuda), `arguments`."""

    def __init__(self, spec: dict[str, Any]) -> None: ...

    def about(self) -> dict[str, Any]:
        """Versions, graphs, memory: what was resolved."""

    def load(self, prompts: Sequence[Sequence[int]], in_flight: int, tokens: int) -> dict[str, Any]:
        """All prompts, `in_flight` at a time, `tokens` each: a `Load` as JSON."""

    def detail(self, prompts: Sequence[Sequence[int]], in_flight: int) -> dict[str, Any]:
        """Where a step's time goes; slower than a step, so its shares count and not its speed."""


def serve(spec: dict[str, Any], orders: TextIO, answers: TextIO) -> None:
    def say(**what: Any) -> None:
        answers.write(json.dumps(what) + "\n")
        answers.flush()

    try:
        module = importlib.import_module(spec["module"])
        engine: Engine = module.Engine(spec)
        say(ok=engine.about())
    except Unavailable as reason:
        say(unavailable=str(reason))
        return
    except BaseException as error:  # an engine may leave by SystemExit
        traceback.print_exc()
        say(error=first_line(error))
        return
    for line in orders:
        order = json.loads(line)
        name = order.pop("do")
        try:
            say(ok=getattr(engine, name)(**order))
        except BaseException as error:
            traceback.print_exc()
            say(error=first_line(error))


def main(arguments: Sequence[str] | None = None) -> None:
    spec, descriptor = sys.argv[1:] if arguments is None else arguments
    with os.fdopen(int(descriptor), "w", encoding="utf-8") as answers:
        serve(json.loads(Path(spec).read_text(encoding="utf-8")), sys.stdin, answers)
    sys.stdout.flush()
    os._exit(0)  # an engine's threads are not waited for


if __name__ == "__main__":
    main()
