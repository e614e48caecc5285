"""Models by their hub names (owner/name): found in the hub's cache, never fetched here."""

import os
import re
from pathlib import Path

from eagle3_serving.errors import InputError
from eagle3_serving.folders import no_config

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def local_model(path: Path, flag: str) -> Path:
    """The folder with a config.json that `path` names: itself, or a hub name's snapshot in the cache.

    Raises InputError, with the way out, where there is none; it begins with `flag`.
    """
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise InputError(f"{flag}: {no_config(path)}")
        return path
    if path.exists():
        raise InputError(
            f"{flag}: {path} is a file; give the folder of a Hugging Face checkpoint (config.json, *.safetensors)"
        )
    name = str(path)
    if not HUB_NAME.fullmatch(name):
        raise InputError(f"{flag}: there is no folder {path}")
    snapshot = cached(name)
    if snapshot is None:
        raise InputError(
            f"{flag}: there is no folder {name}; if it is a hub name, get the model with `hf download {name}` "
            "(it is then found in the hub's cache), or give its folder"
        )
    return snapshot


def require_source(source: str) -> None:
    """Raise InputError where `source` is neither a folder nor looks like a hub name."""
    path = Path(source)
    if path.is_dir() or (not path.exists() and HUB_NAME.fullmatch(source)):
        return
    what = "a file" if path.exists() else "not a directory"
    raise InputError(f"{source} is {what}; give a local checkpoint's folder or a hub id, owner/name")


def cached(name: str) -> Path | None:
    """The snapshot of a hub name's main revision that is in the hub's cache with its weights, else None."""
    kept = _cache() / f"models--{name.replace('/', '--')}"
    try:
        folder = kept / "snapshots" / (kept / "refs" / "main").read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return None
    whole = (folder / "config.json").is_file() and (any(folder.glob("*.safetensors")) or any(folder.glob("*.bin")))
    return folder if whole else None


def _cache() -> Path:
    """Where huggingface_hub keeps what it fetched, by its own variables; importing it would take longer than to look."""
    if own := os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE"):
        return Path(own).expanduser()
    home = os.environ.get("HF_HOME")
    if home is None:
        home = os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    return Path(home).expanduser() / "hub"


def model_name(directory: Path) -> str:
    """What a model's folder is called: its last name, or the hub name of a snapshot in the hub's cache."""
    repository = directory.parent.parent.name
    if directory.parent.name == "snapshots" and repository.startswith("models--"):
        return repository.removeprefix("models--").replace("--", "/", 1)
    return directory.name
