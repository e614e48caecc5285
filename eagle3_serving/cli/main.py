"""`eagle3`: one parser, one module a subcommand, one place where errors become exit codes."""

import argparse
import errno
import importlib
import os
import re
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from eagle3_serving import __version__
from eagle3_serving.cli import exit_codes
from eagle3_serving.cli.parser import Parser
from eagle3_serving.errors import Eagle3Error, InputError

# Each module has add_parser(subparsers) and its parser sets run=callable(args) -> exit code. None imports torch, transformers
# or an engine before it runs: help and errors of usage come at once.
COMMANDS = (
    "demo",
    "fetch_target",
    "serve",
    "check",
    "convert",
    "eval",
    "show",
    "bench",
    "tune",
    "train",
    "features",
    "calibrate",
    "completion",
    "schema",
)
_NO_MEMORY = re.compile(r"can't allocate memory|not enough memory|CUDA out of memory")  # torch's own words
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# what a package that is missing belongs to
_EXTRAS = {"transformers": "embedded", "matplotlib": "train", "httpx": "bench", "openai": "bench", "gguf": "demo"}


def build_parser() -> Parser:
    parser = Parser(prog="eagle3", description="EAGLE-3 drafters for vLLM and SGLang.")
    parser.add_argument("--version", action="version", version=f"eagle3-serving {__version__}")
    parser.set_defaults(root=parser)
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in COMMANDS:
        importlib.import_module(f"eagle3_serving.cli.{name}").add_parser(subparsers)
    return parser


def main(argv: Sequence[str] | None = None, parser: Parser | None = None) -> int:
    """Run `eagle3` on `argv`, or with `parser` a command that has a console script of its own; errors begin with its name."""
    said = parser.prog if parser else "eagle3"
    try:
        args = (parser or build_parser()).parse_args(argv)
        said = parser.prog if parser else f"eagle3 {args.command}"
        with _interruptible(said):
            return _run(args)
    except Eagle3Error as error:
        return _end(said, str(error), error.exit_code)
    except BrokenPipeError:  # whoever read our output has gone, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return exit_codes.UNREAD
    except OSError as error:
        where = error.filename or "a file"
        if error.errno in _NO_ROOM:
            return _end(said, f"{where} cannot be written: {error.strerror}; free some space", exit_codes.NOT_RIGHT)
        return _end(said, f"{where}: {error.strerror or error}", exit_codes.USAGE)
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing in ("", "eagle3_serving"):
            raise
        extra = _EXTRAS.get(missing)
        way = f"pip install 'eagle3-serving[{extra}]'" if extra else f"pip install {missing}"
        return _end(said, f"the package {missing} is not installed: {way}", exit_codes.USAGE)
    except KeyboardInterrupt:
        return _end(said, "interrupted", exit_codes.INTERRUPTED)
    except Exception as error:
        if _interrupted(error):
            return _end(said, "interrupted", exit_codes.INTERRUPTED)
        raise


def _run(args: argparse.Namespace) -> int:
    from eagle3_serving.cli.arguments import check_arguments

    try:
        check_arguments(args)
        exit_code: int = args.run(args)
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not _NO_MEMORY.search(str(error)):
            raise
        raise InputError(
            "there is not enough memory for this; ask for fewer or shorter answers at once, or a smaller draft"
        ) from None
    return exit_code


@contextmanager
def _interruptible(name: str) -> Iterator[None]:
    """Ctrl-C ends at once while torch is imported, whose extension would lose it; nothing of ours has begun then."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        if getattr(getattr(sys.modules.get("torch"), "__spec__", None), "_initializing", False):
            _end(name, "interrupted", exit_codes.INTERRUPTED)
            os._exit(exit_codes.INTERRUPTED)
        raise KeyboardInterrupt

    # an interrupt that is ignored, as in the background of a shell, stays ignored
    usual = threading.current_thread() is threading.main_thread() and callable(signal.getsignal(signal.SIGINT))
    before = signal.signal(signal.SIGINT, interrupt) if usual else None
    try:
        yield
    finally:
        if usual:
            signal.signal(signal.SIGINT, before)


def _end(name: str, line: str, exit_code: int) -> int:
    print(f"{name}: {' '.join(line.split())}", file=sys.stderr)
    return exit_code


def _interrupted(error: BaseException | None) -> bool:
    """Whether Ctrl-C lies under an error: one that comes while modules are imported is made another by some of them."""
    while error is not None:
        if isinstance(error, KeyboardInterrupt):
            return True
        error = error.__cause__ or error.__context__
    return False


if __name__ == "__main__":
    sys.exit(main())
