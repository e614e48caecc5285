"""AngelSlim's: EAGLE's names, trained at rope base 10000 whatever the config says; read only."""

from eagle3_serving.checkpoint.dialects.base import Dialect, Rules
from eagle3_serving.checkpoint.source import Source


def _recognises(source: Source) -> bool:
    # no key of its own is known: the name of the folder, or the one that config.json remembers
    said = f"{source.config.get('_name_or_path', '')} {source.directory}".lower()
    return "angelslim" in said


DIALECT = Dialect("angelslim", "AngelSlim", _recognises, Rules(trains_at_base_10000=True))
