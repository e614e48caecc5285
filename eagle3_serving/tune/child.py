"""A measuring process that leaves nothing behind."""

import os
import subprocess
from collections.abc import Mapping, Sequence

from eagle3_serving.errors import CheckError
from eagle3_serving.serve.server import end_group, turn_sigterm_into_exit


def run_child(argv: Sequence[str], environment: Mapping[str, str]) -> None:
    """Its progress goes to our standard error; its group ends with it, or with us. Raises CheckError where it fails."""
    restore = turn_sigterm_into_exit()
    process = subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        env={**os.environ, **environment},
        start_new_session=True,
    )
    try:
        code = process.wait()
    finally:
        end_group(process, grace_s=5.0)
        restore()
    if code:
        raise CheckError(f"the measurement ended with exit code {code}; what it said stands above")
