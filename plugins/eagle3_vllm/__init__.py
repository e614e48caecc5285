"""EAGLE-3 for the stock vLLM: any dialect of drafter, and draft trees where Model Runner V2 runs.

vLLM loads it by itself (`vllm.general_plugins`) in every process. What can be set stands in `eagle3_vllm.settings`.
"""

import logging

from eagle3_serving.notice import in_a_line, say_once

INEXACT = "answers drafted at a temperature above 0 do not follow the target's law on a CPU (vllm#42638)"


def register() -> None:
    """The entry point, called in each of vLLM's processes: an exception here would end the server, so none leaves it.

    Where anything is not as known nothing of vLLM is changed, and one line says why.
    """
    logger = logging.getLogger("vllm.eagle3")
    try:
        import vllm.logger  # noqa: F401  (gives lines their form)

        from eagle3_vllm.registration import register_all

        problem = register_all(logger)
    except Exception as error:
        problem = in_a_line(error)
    if problem:
        say_once(logger, f"vLLM's own EAGLE-3 serves where one is asked for, all else as ever: {problem}{_inexact()}")


def _inexact() -> str:
    import torch

    return "" if torch.cuda.is_available() else f"; {INEXACT}"
