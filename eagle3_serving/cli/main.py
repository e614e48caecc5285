"""`eagle3`: one parser, one module a subcommand, one place where errors become exit codes."""

import argparse
import errno
import importlib
import sys
from collections.abc import Sequence

from eagle3_serving import __version__
from eagle3_serving.errors import Eagle3Error

# Each module has add_parser(subparsers) and its parser sets run=callable(args) -> exit code.
COMMANDS = ("demo", "fetch_target", "serve", "check", "convert", "eval", "bench", "tune", "train", "calibrate")
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="eagle3", description="EAGLE-3 drafters for vLLM and SGLang.")
    parser.add_argument("--version", action="version", version=f"eagle3-serving {__version__}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in COMMANDS:
        importlib.import_module(f"eagle3_serving.cli.{name}").add_parser(subparsers)
    return parser


def main(argv: Sequence[str] | None = None, name: str | None = None) -> int:
    """Run `eagle3` on `argv`; `name` is what errors begin with, where a command has a console script of its own."""
    args = build_parser().parse_args(argv)
    name = name or f"eagle3 {args.command}"
    try:
        exit_code: int = args.run(args)
    except Eagle3Error as error:
        print(f"{name}: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        print(
            f"{name}: {error.filename or 'a file'} cannot be written: {error.strerror}; free some space",
            file=sys.stderr,
        )
        return 1
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        return 130
    return exit_code


if __name__ == "__main__":
    sys.exit(main())
