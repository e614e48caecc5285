"""Lines that a server of many processes says once, or ends with, and exceptions in one line."""

import hashlib
import logging
import os
import sys
from typing import NoReturn

from eagle3_serving.errors import CheckError, Eagle3Error

SAID = "EAGLE3_SAID"  # digests of lines that were said; a server's processes inherit it from the first


def say_once(logger: logging.Logger, line: str) -> None:
    """Warn, unless this process or one that started it said the same."""
    digest = hashlib.sha256(line.encode()).hexdigest()[:8]
    said = os.environ.get(SAID, "").split()
    if digest not in said:
        os.environ[SAID] = " ".join([*said, digest])
        logger.warning("eagle3: %s", line)


def stop(problem: str, code: int = CheckError.exit_code) -> NoReturn:
    """Ends an engine's server with one line."""
    print(f"eagle3: {problem}", file=sys.stderr, flush=True)
    sys.exit(code)


def in_a_line(error: BaseException) -> str:
    """Its kind and the first line of its message; those that are raised on purpose say enough by themselves."""
    if isinstance(error, Eagle3Error):
        return str(error)
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
