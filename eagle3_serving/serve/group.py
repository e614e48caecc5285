"""A process and all its children: started as one group and ended as one, whatever becomes of us."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

_WARDEN = Path(__file__).with_name("warden.py")
GRACE_S = 10.0


class Group:
    """`process` leads it; `streams` as in `subprocess.Popen`, whose errors this raises.

    Where we are killed without a word (SIGKILL, out of memory), a warden ends the group: it would hold its port and its GPU.
    """

    def __init__(self, argv: Sequence[str], grace_s: float, **streams: Any) -> None:
        self.grace_s = grace_s
        # a session of its own: the engine's workers end with it, and Ctrl-C is ours to pass on
        self.process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, start_new_session=True, **streams)
        try:
            self._warden = subprocess.Popen(
                [sys.executable, "-I", "-S", str(_WARDEN), str(self.process.pid), str(grace_s)],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        except BaseException:
            self._end_processes()
            raise

    def end(self) -> None:
        """Asks the process and its group to end, then kills what is left of them."""
        try:
            self._end_processes()
        finally:
            with suppress(OSError):  # a warden that is gone itself
                self._warden.communicate(b".")

    def _end_processes(self) -> None:
        self._signal(signal.SIGTERM)
        try:
            self.process.wait(self.grace_s)
        except subprocess.TimeoutExpired:
            pass
        finally:
            # Workers can outlive their leader, and a second Ctrl-C must not save them.
            self._signal(signal.SIGKILL)
            self.process.wait()

    def _signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)


@contextmanager
def own_group(argv: Sequence[str], grace_s: float, **streams: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A child whose whole group ends with this block, SIGTERM to us included; `streams` as in `subprocess.Popen`."""
    restore = turn_sigterm_into_exit()
    try:
        group = Group(argv, grace_s, **streams)
        try:
            yield group.process
        finally:
            group.end()
    finally:
        restore()


def turn_sigterm_into_exit() -> Callable[[], None]:
    """SIGTERM becomes SystemExit, so that the context managers above it run. Returns the way back."""
    if threading.current_thread() is not threading.main_thread():
        return nothing

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)

    def restore() -> None:
        signal.signal(signal.SIGTERM, before)

    return restore


def nothing() -> None:
    return None
