"""EAGLE-3 trees that follow the batch, under stock SGLang's `--speculative-algorithm EAGLE3`."""

from eagle3_serving.notice import in_a_line
from eagle3_sglang.fallback import fall_back


def register() -> None:
    """The entry point, called once in each of SGLang's processes. Where anything is not as known SGLang is left as it is, and
    one line says why."""
    try:
        from eagle3_sglang.hooks import register_hooks

        problem = register_hooks()
    except Exception as error:
        problem = in_a_line(error)
    if problem:
        fall_back(problem)
