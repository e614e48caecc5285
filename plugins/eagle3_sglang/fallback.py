"""What becomes of a server that ours cannot serve as asked: SGLang's own EAGLE3 does, or it ends. One line says why."""

import logging
import sys
from typing import NoReturn

from eagle3_serving.errors import CheckError
from eagle3_serving.notice import say_once

log = logging.getLogger("eagle3_sglang")


def fall_back(problem: str) -> None:
    say_once(log, f"SGLang's own EAGLE3 serves where it is asked for, with one tree for the server's life: {problem}")


def stop(problem: str, code: int = CheckError.exit_code) -> NoReturn:
    """Ends the server with one line."""
    print(f"eagle3: {problem}", file=sys.stderr, flush=True)
    sys.exit(code)
