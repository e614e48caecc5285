"""What several commands take alike, and what is settled before any of them runs."""

import argparse
import json
from pathlib import Path

from eagle3_serving.dtypes import KNOWN, own_dtype, short_dtype
from eagle3_serving.errors import InputError
from eagle3_serving.files import read_text
from eagle3_serving.hub import local_model


def add_subject(parser: argparse.ArgumentParser) -> None:
    """A target, its drafter, and prompts."""
    add_pair(parser)
    parser.add_argument("--prompts", type=Path, nargs="+", required=True, help="JSONL files, or directories of them")


def add_pair(parser: argparse.ArgumentParser, drafter: str = "") -> None:
    """A target and its drafter; `drafter` is more to say of the latter."""
    add_target(parser)
    parser.add_argument(
        "--drafter", type=Path, required=True, help=f"directory of the EAGLE-3 drafter{drafter}, or its hub name"
    )


def add_target(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--target",
        type=Path,
        required=True,
        help="directory of the target model, or its hub name where it is in the cache",
    )


def add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")


def add_dtype(parser: argparse.ArgumentParser, default: str | None, help_text: str = "") -> None:
    """`--dtype` in any of a format's names; `args.dtype` is the short one."""
    said = f"{KNOWN}{f' (default {default})' if default else ''}"
    parser.add_argument("--dtype", type=dtype, default=default, help=f"{help_text}{said}")


def dtype(word: str) -> str:
    try:
        return short_dtype(word)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def settle(args: argparse.Namespace) -> None:
    """Folders in place of hub names, and files that are there, before a command imports what takes long.

    Raises InputError naming the flag.
    """
    for name in ("target", "drafter", "init"):
        value = getattr(args, name, None)
        if isinstance(value, Path):
            setattr(args, name, local_model(value, f"--{name}"))
    for name in ("prompts", "answers", "vocabulary", "traffic", "eval_prompts"):
        for path in getattr(args, name, None) or ():
            if not path.exists():
                raise InputError(f"--{name.replace('_', '-')}: there is no file {path}")
    profile = getattr(args, "profile", None)
    if profile is not None and not profile.is_file():
        raise InputError(f"--profile: there is no file {profile}")


def settle_dtype(short: str, target: Path) -> str:
    """A short dtype, `auto` as the target's config.json has it."""
    if short != "auto":
        return short
    path = target / "config.json"
    try:
        config = json.loads(read_text(path))
    except ValueError as error:
        raise InputError(f"{path} is not JSON: {error}") from None
    return own_dtype(config if isinstance(config, dict) else {}, path)
