"""Is the drafter one that SGLang can serve?"""

from eagle3_sglang.settings import Settings


def servable(drafter: str, target: str, settings: Settings) -> str:
    return drafter
