"""A program of its own that imports nothing of this package: it ends a process group once its owner is gone.

    python warden.py GROUP GRACE_SECONDS < PIPE

The owner holds the pipe's other end, which closes with it, SIGKILL and out-of-memory included. A byte says that the group was ended.
"""

import os
import signal
import sys
import time


def end(group: int, grace_s: float) -> None:
    """SIGTERM, and SIGKILL to what is left of the group after `grace_s` seconds."""
    for number, patience_s in ((signal.SIGTERM, grace_s), (signal.SIGKILL, 0.0)):
        try:
            os.killpg(group, number)
            until = time.monotonic() + patience_s
            while time.monotonic() < until:
                os.killpg(group, 0)
                time.sleep(0.1)
        except OSError:  # nobody is left
            return


if __name__ == "__main__":
    if not os.read(0, 1):
        end(int(sys.argv[1]), float(sys.argv[2]))
