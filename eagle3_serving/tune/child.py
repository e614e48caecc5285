"""A measuring process that leaves nothing behind."""

import subprocess
from collections.abc import Sequence

from eagle3_serving.errors import CheckError
from eagle3_serving.serve.server import end_group, turn_sigterm_into_exit


def run_child(argv: Sequence[str]) -> None:
    """Its progress goes to our standard error; its group ends with it, or with us. Raises CheckError where it fails."""
    restore = turn_sigterm_into_exit()
    process = subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        code = process.wait()
    finally:
        end_group(process, grace_s=5.0)
        restore()
    if code:
        raise CheckError(f"the measurement ended with exit code {code}; what it said stands above")
