"""An engine's OpenAI server as a child process: started, waited for, and killed with all its children."""

import os
import random
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx

from eagle3_serving.errors import CheckError, InputError
from eagle3_serving.serve.address import HOST, reached_at
from eagle3_serving.serve.group import GRACE_S, Group, nothing, turn_sigterm_into_exit

_LAST_LINES = 4
_DICE = random.SystemRandom()  # two processes must not draw the same ports
_OWN_PORTS, _TRIES = (12000, 30000), 20  # below what systems give connections: from 32768 on, elsewhere from 49152
_EXCEPTION = re.compile(r"^\w[\w.]*(Error|Exception|Interrupt)\b|Killed|out of memory")
# What vLLM and its loggers put before the message: "(EngineCore pid=12) ERROR 11-24 01:56:08 [core.py:9] ".
_PREFIX = re.compile(r"^(\([\w ]+pid=\d+\) )?((ERROR|CRITICAL|WARNING|INFO) [\d-]+ [\d:]+ \[[^\]]*\] )?\s*")


@dataclass(frozen=True)
class ServerCommand:
    """How to start a server; `{port}` inside `argv` is replaced by the port."""

    name: str
    argv: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    host: str = HOST  # where its arguments let it listen


def claim_port(port: int | None = None, host: str = HOST) -> int:
    """A port that can be bound now. Raises InputError where the wanted one is taken, or the host is none of this machine's.

    Without a wish one that the system gives no connection of its own accord: an engine binds it only once its model is loaded.
    """
    for _ in range(_TRIES if port is None else 0):
        try:
            return claim_port(_DICE.randrange(*_OWN_PORTS), host)
        except InputError:  # another's
            continue
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM) as probe:
        # Without it a port whose last owner just ended looks taken (TIME_WAIT).
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port or 0))
        except (OSError, OverflowError) as error:
            raise InputError(
                f"port {port} cannot be used at {host} ({error}): stop its owner or give another"
            ) from None
        number: int = probe.getsockname()[1]
        return number


def last_lines(log: Path, count: int = _LAST_LINES) -> list[str]:
    """The last lines of a log that say something: the exceptions where there are any, else the tail. Each once."""
    if not log.is_file():
        return []
    lines = [_PREFIX.sub("", line).rstrip() for line in log.read_text(errors="replace").splitlines()]
    lines = list(dict.fromkeys(line for line in lines if line))
    return ([line for line in lines if _EXCEPTION.search(line)] or lines)[-count:]


@contextmanager
def log_directory(name: str) -> Iterator[Path]:
    """A temporary folder for servers' logs; kept where the block fails, since the error names a log in it."""
    folder = Path(tempfile.mkdtemp(prefix=f"eagle3-{name}-"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


class Server:
    """Context manager: the server is ready inside the block, and its whole process group is gone after it, or after us.

    `ready_s` seconds are given to `/health`, `grace_s` to an end; `log` keeps everything the server prints. Raises InputError where
    the port is taken, CheckError where the server dies or is not ready in time.
    """

    def __init__(
        self,
        command: ServerCommand,
        log: Path,
        port: int | None = None,
        ready_s: float = 600.0,
        quiet: bool = False,
        grace_s: float = GRACE_S,
    ) -> None:
        self.command = command
        self.log = log
        self.wanted_port = port
        self.ready_s = ready_s
        self.quiet = quiet
        self.grace_s = grace_s
        self.port = 0
        self.startup_s = 0.0
        self._group: Group | None = None
        self._restore: Callable[[], None] = nothing

    @property
    def url(self) -> str:
        return reached_at(self.command.host, self.port)

    @property
    def pid(self) -> int:
        """The leader of the process group. Only inside the block."""
        return self._leader.pid

    @property
    def ended(self) -> int | None:
        """The exit code, None while it runs. Only inside the block."""
        return self._leader.poll()

    @property
    def last_words(self) -> str:
        """The end of its log, and where that is."""
        return self._why()

    @property
    def _leader(self) -> subprocess.Popen[bytes]:
        assert self._group is not None, "the server is not running"
        return self._group.process

    def __enter__(self) -> Self:
        self._restore = turn_sigterm_into_exit()
        try:
            self.port = claim_port(self.wanted_port, self.command.host)
            self._start()
            self._wait_until_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Asks the group to end, then kills what is left of it. Safe to call twice."""
        group, self._group = self._group, None
        try:
            if group is not None:
                group.end()
        finally:
            self._restore()
            self._restore = nothing

    def _start(self) -> None:
        self.log.parent.mkdir(parents=True, exist_ok=True)
        argv = [part.replace("{port}", str(self.port)) for part in self.command.argv]
        with self.log.open("wb") as output:
            try:
                environment = {**os.environ, **self.command.environment}
                self._group = Group(argv, self.grace_s, stdout=output, stderr=subprocess.STDOUT, env=environment)
            except OSError as error:
                raise InputError(f"cannot start {self.command.name}: {error}") from None

    def _wait_until_ready(self) -> None:
        started = time.monotonic()
        progress = _ProgressLine(self.command.name, self.quiet)
        taken = re.compile(rb"\b%d\b.*address already in use" % self.port, re.IGNORECASE)
        try:
            while (elapsed := time.monotonic() - started) < self.ready_s:
                if (code := self.ended) is not None:
                    raise CheckError(f"{self.command.name} ended at start (exit code {code}): {self._why()}")
                if self._answers():
                    self.startup_s = elapsed
                    return
                if taken.search(self.log.read_bytes()):  # SGLang's server stays, and listens nowhere
                    raise CheckError(f"{self.command.name} found port {self.port} taken: start it again: {self._why()}")
                progress.show(elapsed)
                time.sleep(0.25)
        finally:
            progress.end()
        raise CheckError(f"{self.command.name} was not ready in {self.ready_s:.0f} s: {self._why()}")

    def _answers(self) -> bool:
        try:
            return httpx.get(f"{self.url}/health", timeout=2.0).status_code == 200
        except httpx.HTTPError:
            return False

    def _why(self) -> str:
        return " | ".join(last_lines(self.log)) + f" (log: {self.log})"


class _ProgressLine:
    """One line on stderr that is rewritten on a terminal, and printed once elsewhere."""

    def __init__(self, name: str, quiet: bool) -> None:
        self.name = name
        self.terminal = sys.stderr.isatty() and not quiet
        if not self.terminal and not quiet:
            print(f"starting {name} ...", file=sys.stderr, flush=True)

    def show(self, elapsed_s: float) -> None:
        if self.terminal:
            print(f"\rstarting {self.name} ... {elapsed_s:3.0f} s", end="", file=sys.stderr, flush=True)

    def end(self) -> None:
        if self.terminal:
            print(file=sys.stderr)
