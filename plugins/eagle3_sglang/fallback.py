"""What becomes of a server that ours cannot serve as asked: SGLang's own EAGLE3 serves, and one line says why."""

import logging

from eagle3_serving.notice import say_once

log = logging.getLogger("eagle3_sglang")


def fall_back(problem: str) -> None:
    say_once(log, f"SGLang's own EAGLE3 serves where it is asked for, with one tree for the server's life: {problem}")
