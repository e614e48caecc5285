"""Every dialect, one file each; a new one is a file and a name here."""

from eagle3_serving.checkpoint.dialects import (
    angelslim,
    eagle,
    modelopt,
    sglang,
    specforge,
    speculators,
    universal,
    vllm,
)
from eagle3_serving.checkpoint.dialects.base import Dialect, provenance
from eagle3_serving.checkpoint.source import Source

# in the order in which they are asked whether a source is theirs; the last takes what nobody claims
DIALECTS: dict[str, Dialect] = {
    module.DIALECT.name: module.DIALECT
    for module in (speculators, modelopt, angelslim, universal, vllm, specforge, sglang, eagle)
}
WRITABLE = tuple(name for name in ("vllm", "sglang", "universal", "speculators", "eagle") if DIALECTS[name].write)


def recognise(source: Source) -> Dialect:
    """The dialect that a source is written in: what our own conversion noted, else its marks."""
    noted = provenance(source).get("dialect")
    if isinstance(noted, str) and noted in DIALECTS:
        return DIALECTS[noted]
    return next(dialect for dialect in DIALECTS.values() if dialect.recognises(source))


__all__ = ["DIALECTS", "WRITABLE", "Dialect", "recognise"]
