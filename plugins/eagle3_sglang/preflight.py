"""Before SGLang reads a weight: can it serve this drafter? SGLang skips in silence what it does not know.

The check is `eagle3 check --engine sglang`; a drafter of another dialect is converted into the cache.
"""

import hashlib
import logging
from functools import lru_cache
from pathlib import Path

from eagle3_serving.checkpoint.check import check
from eagle3_serving.checkpoint.convert import convert
from eagle3_serving.checkpoint.findings import Finding
from eagle3_serving.errors import CheckError, Eagle3Error
from eagle3_serving.serve.sglang import CHECK
from eagle3_serving.targets.cache import cache_directory

log = logging.getLogger(__name__)


@lru_cache
def servable(drafter: str, target: str) -> str:
    """The drafter's directory, or that of a converted copy. What is no directory (a hub id) is SGLang's to find.

    Raises CheckError or InputError, in one line, where neither can be served.
    """
    directory = Path(drafter)
    if not directory.is_dir():
        log.warning("eagle3: the drafter %s is no directory and goes unchecked", drafter)
        return drafter
    beside = Path(target) if (Path(target) / "config.json").is_file() else None
    broken = _broken(directory, beside)
    if not broken:
        return drafter
    copy = cache_directory() / "converted" / f"sglang-{_digest(directory)}"
    try:
        if not copy.is_dir():
            convert(directory, copy, to="sglang", target=beside, parity=False)
        still = _broken(copy, beside)
    except Eagle3Error as error:
        why = "" if broken[0].what in str(error) else f": {error}"
        raise CheckError(_line(drafter, broken[0], f"no conversion mends it{why}")) from None
    if still:
        raise CheckError(_line(drafter, still[0], "a conversion does not mend it"))
    log.warning(
        "eagle3: SGLang would not serve %s as it is (%s); its converted copy %s is served",
        drafter,
        broken[0].line(),
        copy,
    )
    return str(copy)


def _broken(directory: Path, target: Path | None) -> list[Finding]:
    found = check(directory, engine="sglang", target=target)
    for finding in found:
        if finding.severity == "warning":
            log.warning("eagle3: %s: %s", directory.name, finding.line())
    return [finding for finding in found if finding.breaks]


def _line(drafter: str, finding: Finding, why: str) -> str:
    return f"{drafter}: {finding.line()} ({why}); {CHECK}=off serves it as it is"


def _digest(directory: Path) -> str:
    """Of the files as they are now: a changed drafter is another."""
    files = sorted(path for path in directory.iterdir() if path.is_file())
    facts = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return hashlib.sha256(repr((str(directory.resolve()), facts)).encode()).hexdigest()[:16]
