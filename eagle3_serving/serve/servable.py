"""Before an engine reads a weight: can it serve this drafter? What it would get wrong in silence is converted, or told."""

import hashlib
import shutil
from dataclasses import dataclass
from pathlib import Path

from eagle3_serving.checkpoint import Finding, check, convert
from eagle3_serving.checkpoint.engines.sglang import WINDOW_FLAG
from eagle3_serving.checkpoint.engines.vllm import PARALLEL
from eagle3_serving.checkpoint.findings import verdict
from eagle3_serving.checkpoint.names import CAUSAL
from eagle3_serving.checkpoint.read import read
from eagle3_serving.checkpoint.source import open_source
from eagle3_serving.errors import CheckError, Eagle3Error
from eagle3_serving.targets.cache import cache_directory


@dataclass(frozen=True)
class Servable:
    """`directory` is what to serve: the drafter itself, or its converted and proved copy. `mended` says why there is a copy;
    `warnings` are what the check still says of it, `unjudged` what it does not know. `parallel`: it drafts all tokens in one
    pass (P-EAGLE), which vLLM must be told. `window`: tokens that it looks back on, its own among them, which SGLang must be told."""

    directory: Path
    mended: Finding | None
    warnings: tuple[Finding, ...]
    unjudged: tuple[Finding, ...] = ()
    parallel: bool = False
    window: int | None = None


def servable(drafter: Path, engine: str, target: Path | None = None) -> Servable:
    """The drafter as `engine` ("vllm" or "sglang") can serve it; a copy is kept in the cache, keyed by its files.

    A copy is served only after the proof of its conversion. What is not judged here is passed through as it is.
    Raises CheckError or InputError, in one line, where neither it nor a conversion can be served.
    """
    found = check(drafter, engine=engine, target=target)
    broken = [finding for finding in found if finding.breaks]
    if verdict(found) is not False:
        return _as_it_is(drafter, None, found)
    copy = cache_directory() / "proved" / f"{engine}-{_digest(drafter, target)}"
    try:
        if not copy.is_dir():
            report = convert(drafter, copy, to=engine, target=target)
            if not report.parity:
                shutil.rmtree(copy)
                raise CheckError(f"a conversion cannot be proved ({report.parity_note}): convert it by hand")
        found = check(copy, engine=engine, target=target)
    except Eagle3Error as error:
        why = "" if broken[0].what in str(error) else f": {error}"
        raise CheckError(f"{drafter}: {broken[0].line()} (no conversion mends it{why})") from None
    still = [finding for finding in found if finding.breaks]
    if still:
        raise CheckError(f"{drafter}: {still[0].line()} (a conversion does not mend it)")
    return _as_it_is(copy, broken[0], found)


def require_pair(drafter: Path, target: Path) -> None:
    """Raise CheckError, before a server starts, where the drafter is broken or another target's; headers alone are read."""
    for finding in check(drafter, engine="vllm", target=target, values=False):
        if finding.breaks and finding.engine == "any":
            raise CheckError(f"{drafter}: {finding.line()}")


def _as_it_is(directory: Path, mended: Finding | None, found: list[Finding]) -> Servable:
    parallel = [f for f in found if f.unjudged and (PARALLEL in f.what or f.where == CAUSAL)]
    untold = [finding for finding in found if WINDOW_FLAG in finding.fix]
    return Servable(
        directory,
        mended,
        tuple(finding for finding in found if finding.severity == "warning" and finding not in untold),
        tuple(finding for finding in found if finding.unjudged and finding not in parallel),
        bool(parallel),
        read(open_source(directory)).config.sliding_window if untold else None,
    )


def _digest(drafter: Path, target: Path | None) -> str:
    """Of the files' names, sizes and times: enough to tell whether a copy is of what stands there now, for this target."""
    folders = [drafter] if target is None else [drafter, target]
    files = [path for folder in folders for path in sorted(folder.iterdir()) if path.is_file()]
    said = repr([(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in files])
    return hashlib.sha256(said.encode()).hexdigest()[:16]
