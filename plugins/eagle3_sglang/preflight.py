"""Before SGLang reads a weight: can it serve this drafter? SGLang skips in silence what it does not know.

The check is `eagle3 check --engine sglang`; a drafter of another dialect is converted into the cache.
"""

import logging
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from eagle3_serving.errors import CheckError
from eagle3_serving.serve import servable as shared
from eagle3_serving.serve.sglang import CHECK

log = logging.getLogger(__name__)


class Served(NamedTuple):
    """What SGLang is given: the drafter's directory, or its converted copy's, and the window that it has, its own token included."""

    path: str
    window: int | None = None


@lru_cache
def servable(drafter: str, target: str) -> Served:
    """What is no directory (a hub id) is SGLang's to find.

    Raises CheckError or InputError, in one line, where neither the drafter nor a conversion can be served.
    """
    directory = Path(drafter)
    if not directory.is_dir():
        log.warning("eagle3: the drafter %s is no directory and goes unchecked", drafter)
        return Served(drafter)
    beside = Path(target) if (Path(target) / "config.json").is_file() else None
    try:
        found = shared.servable(directory, "sglang", beside)
    except CheckError as error:
        raise CheckError(f"{error}; {CHECK}=off serves it as it is") from None
    for finding in found.warnings:
        log.warning("eagle3: %s: %s", directory.name, finding.line())
    for finding in found.unjudged:
        log.warning("eagle3: %s is not judged here and is served as it is: %s", directory.name, finding.line())
    if found.mended is None:
        return Served(drafter, found.window)
    why = found.mended.line()
    log.warning(
        "eagle3: SGLang would not serve %s as it is (%s); its converted copy %s is served",
        drafter,
        why,
        found.directory,
    )
    return Served(str(found.directory), found.window)


def keep_window(server_args: Any, window: int) -> None:
    """SGLang reads a drafter's window off its own flag alone, in tokens before a row's own; a flag that was given stays."""
    if getattr(server_args, "speculative_draft_window_size", 0) is not None:
        return  # given, or a version without the flag
    server_args.speculative_draft_window_size = window - 1
    log.info("eagle3: the drafter looks back %d tokens: --speculative-draft-window-size %d", window, window - 1)
