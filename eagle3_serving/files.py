"""Files that are either whole or not there, and text as people save it."""

import json
import tempfile
from pathlib import Path
from typing import Any

from eagle3_serving.errors import InputError


def write_whole(path: Path, content: str | bytes) -> None:
    """Written beside and renamed, so that a reader or a kill never meets half of it. Makes the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.partial")
    beside.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
    beside.replace(path)


def read_text(path: Path) -> str:
    """UTF-8, a byte-order mark before it left out. Raises InputError, in one line, where that cannot be read."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise InputError(f"there is no file {path}") from None
    except IsADirectoryError:
        raise InputError(f"{path} is a directory, not a file") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from None


def parse_json(text: str, where: object) -> Any:
    """What JSON text says. Raises InputError, in one line that begins with `where`, on what is none."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{where}: not JSON ({error.msg} at line {error.lineno}, column {error.colno})") from None
    except (ValueError, RecursionError):  # digits without end, brackets without end
        raise InputError(f"{where}: not JSON that can be read (a number or a nesting without end)") from None


def require_absent(destination: Path) -> None:
    """Raise InputError where `destination` is neither absent nor an empty folder."""
    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        raise InputError(f"{destination} exists already; remove it, or name another destination")


def require_writable(folder: Path, flag: str) -> None:
    """Raise InputError, before anything long begins, where nothing could be written into `folder` or it cannot be made."""
    near = folder
    while not near.exists() and near != near.parent:
        near = near.parent
    if not near.is_dir():
        raise InputError(f"{flag}: {near} is a file, not a directory")
    try:  # permission bits do not tell: a read-only disk, a user whom they do not bind, a folder of the kernel's
        tempfile.TemporaryFile(dir=near).close()
    except OSError as error:
        raise InputError(f"{flag}: nothing can be written into {near}: {error.strerror}") from None


def require_file_place(path: Path, flag: str) -> None:
    """Raise InputError where `path` is no place for a file that is written in the end."""
    if path.exists() and not path.is_file():
        raise InputError(f"{flag}: {path} is {'a directory' if path.is_dir() else 'no file'}; name a file")
    require_writable(path.parent, flag)
