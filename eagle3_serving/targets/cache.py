"""Where models made or fetched by this package are kept."""

import os
from pathlib import Path


def cache_directory() -> Path:
    """$EAGLE3_CACHE, else eagle3-serving under $XDG_CACHE_HOME or ~/.cache."""
    if own := os.environ.get("EAGLE3_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "eagle3-serving"
