"""A measuring process that leaves nothing behind."""

import subprocess
from collections.abc import Sequence

from eagle3_serving.errors import CheckError
from eagle3_serving.serve.group import own_group


def run_child(argv: Sequence[str]) -> None:
    """Its progress goes to our standard error; its group ends with it, or with us. Raises CheckError where it fails."""
    with own_group(argv, grace_s=5.0, stdout=subprocess.DEVNULL) as process:
        code = process.wait()
    if code:
        raise CheckError(f"the measurement ended with exit code {code}; what it said stands above")
