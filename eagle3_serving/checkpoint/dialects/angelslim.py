"""AngelSlim's: EAGLE's names, trained at rope base 10000 whatever the config says; read only."""

from eagle3_serving.checkpoint.dialects.base import Dialect, Rules
from eagle3_serving.checkpoint.source import Source


def _recognises(source: Source) -> bool:
    # no key of its own is known but the name that config.json remembers; how the folder is called today tells nothing
    return "angelslim" in str(source.config.get("_name_or_path", "")).lower()


DIALECT = Dialect("angelslim", "AngelSlim", _recognises, Rules(norm_output="either", trains_at_base_10000=True))
