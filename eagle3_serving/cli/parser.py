"""The parser of every command: errors of usage in one line with the nearest word, and exit codes at the end of help."""

import argparse
import sys
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import Any, NoReturn

from eagle3_serving.cli import exit_codes

ALIKE = 0.75  # of difflib's ratio: less is another word, not a slip of the finger


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Every name of an option, and once what it takes: `--target, --model, --model-path DIR`."""

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings or action.nargs == 0:
            return super()._format_action_invocation(action)
        takes = self._format_args(action, self._get_default_metavar_for_optional(action))
        return f"{', '.join(action.option_strings)} {takes}"


class Parser(argparse.ArgumentParser):
    """Of `eagle3` and, since argparse makes a command's parser of the same class, of each of its commands."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"formatter_class": HelpFormatter, **options})
        self._said: list[str] = []  # what is being parsed: an error tells of the words in it

    def format_help(self) -> str:
        return f"{super().format_help()}\n{exit_codes.table()}"

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[argparse.Namespace, list[str]]:
        self._said = sys.argv[1:] if args is None else list(args)
        known, rest = super().parse_known_args(self._said, namespace)
        if rest:  # told by the command whose they are, not by `eagle3`
            self.error(f"unrecognized arguments: {' '.join(rest)}")
        return known, rest

    def error(self, message: str) -> NoReturn:
        """Raises SystemExit(2) after one line. A slip in a flag is told in the place of what it led to."""
        slips = [f"there is no {flag}{self._nearest(flag)}" for flag in self._strange_flags()]
        self.exit(exit_codes.USAGE, f"{self.prog}: {'; '.join(slips) or message}; see {self.prog} --help\n")

    def _strange_flags(self) -> list[str]:
        found = []
        for word in self._said:
            if word == "--" or (self._subparsers is not None and not word.startswith("-")):
                break  # what follows is an engine's, or a command's
            flag = word.partition("=")[0]
            # argparse takes the beginning of a flag too, and a word with a space for a value
            if flag.startswith("--") and " " not in word and not any(k.startswith(flag) for k in self._flags()):
                found.append(flag)
        return found

    def _nearest(self, flag: str) -> str:
        return did_you_mean(flag, self._flags())

    def _flags(self) -> list[str]:
        return [flag for flag in self._option_string_actions if flag.startswith("--")]

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            choices = [str(choice) for choice in action.choices]
            raise argparse.ArgumentError(
                action, f"{str(value)!r:.80} is none of {', '.join(choices)}{did_you_mean(str(value), choices)}"
            )


def did_you_mean(word: str, words: Iterable[str]) -> str:
    """`: did you mean --target?`, "" where nothing is near."""
    near = get_close_matches(word, list(words), n=1, cutoff=ALIKE)
    return f": did you mean {near[0]}?" if near else ""
