"""Before an engine reads a weight: can it serve this drafter? What it would get wrong in silence is converted, or told."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from eagle3_serving.checkpoint import Finding, check, convert
from eagle3_serving.errors import CheckError, Eagle3Error
from eagle3_serving.targets.cache import cache_directory


@dataclass(frozen=True)
class Servable:
    """`directory` is what to serve: the drafter itself, or its converted copy. `mended` says why there is a copy;
    `warnings` are what the check still says of it."""

    directory: Path
    mended: Finding | None
    warnings: tuple[Finding, ...]


def servable(drafter: Path, engine: str, target: Path | None = None) -> Servable:
    """The drafter as `engine` ("vllm" or "sglang") can serve it; a copy is kept in the cache, keyed by its files.

    Raises CheckError or InputError, in one line, where neither it nor a conversion can be served.
    """
    found = check(drafter, engine=engine, target=target)
    broken = [finding for finding in found if finding.breaks]
    if not broken:
        return Servable(drafter, None, _warnings(found))
    copy = cache_directory() / "converted" / f"{engine}-{_digest(drafter)}"
    try:
        if not copy.is_dir():
            convert(drafter, copy, to=engine, target=target, parity=False)
        found = check(copy, engine=engine, target=target)
    except Eagle3Error as error:
        why = "" if broken[0].what in str(error) else f": {error}"
        raise CheckError(f"{drafter}: {broken[0].line()} (no conversion mends it{why})") from None
    still = [finding for finding in found if finding.breaks]
    if still:
        raise CheckError(f"{drafter}: {still[0].line()} (a conversion does not mend it)")
    return Servable(copy, broken[0], _warnings(found))


def _warnings(found: list[Finding]) -> tuple[Finding, ...]:
    return tuple(finding for finding in found if finding.severity == "warning")


def _digest(directory: Path) -> str:
    """Of the files' names, sizes and times: enough to tell whether a copy is of what stands there now."""
    files = sorted(path for path in directory.iterdir() if path.is_file())
    said = repr([(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files])
    return hashlib.sha256(f"{directory.resolve()} {said}".encode()).hexdigest()[:16]
