"""`eagle3 completion`: what makes Tab complete commands, flags, their choices and files in a shell."""

import argparse
from pathlib import Path
from typing import Any

from eagle3_serving.cli.arguments import dtype
from eagle3_serving.cli.convert import script_parser
from eagle3_serving.cli.parser import Parser
from eagle3_serving.dtypes import WORDS

_EXAMPLES = """examples:
  source <(eagle3 completion bash)                          # in ~/.bashrc, after the environment is activated
  eval "$(eagle3 completion zsh)"                           # in ~/.zshrc, after compinit
  eagle3 completion tcsh > ~/.eagle3.tcsh                   # and `source ~/.eagle3.tcsh` in ~/.tcshrc
  eagle3 completion zsh --program eagle3 > ~/.zfunc/_eagle3 # a file of zsh's fpath, one a program
"""
SHELLS = ("bash", "zsh", "tcsh")
PROGRAMS = ("eagle3", "eagle3-convert")
_FOLDERS = {"target", "drafter", "init", "features", "dir", "source", "destination"}  # of what takes paths


def add_parser(subparsers: "argparse._SubParsersAction[Parser]") -> None:
    parser = subparsers.add_parser(
        "completion",
        help="print what completes these commands in bash, zsh or tcsh",
        description=__doc__,
        epilog=_EXAMPLES,
    )
    parser.add_argument("shell", choices=SHELLS)
    parser.add_argument("--program", choices=PROGRAMS, help="for one of them alone (default: both)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """`args.root` is the parser of `eagle3`."""
    parsers = dict(zip(PROGRAMS, (args.root, script_parser()), strict=True))
    print("\n".join(script(parser, args.shell) for name, parser in parsers.items() if args.program in (None, name)))
    return 0


def script(parser: Parser, shell: str) -> str:
    """What completes `parser`'s program, which parses nothing after that. Raises ModuleNotFoundError where shtab is missing."""
    import shtab

    _hint(parser, shtab.FILE, shtab.DIRECTORY)
    # by its own name alone the variables of `eagle3-convert` would be those of `eagle3 convert`
    prefix = parser.prog.replace("-", "_script_")
    return str(shtab.complete(parser, shell, root_prefix=prefix))


def _hint(parser: argparse.ArgumentParser, file: Any, folder: Any) -> None:
    """What stands behind each flag, for shtab."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                _hint(command, file, folder)
        elif action.type is dtype:
            action.choices = WORDS
        elif action.type is Path or action.dest in _FOLDERS:
            action.complete = folder if action.dest in _FOLDERS else file  # type: ignore[attr-defined]
