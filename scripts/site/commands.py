"""The reference of the commands, from their parsers."""

import argparse
import re

from eagle3_serving.cli import exit_codes
from eagle3_serving.cli.main import build_parser


def page() -> str:
    parts = [
        "# Commands\n",
        "What `--help` says, command by command. `eagle3-convert` is `eagle3 convert`.\n",
        _exit_codes(),
    ]
    for name, parser in subparsers(build_parser()).items():
        parts += _command(name, parser)
    return "\n".join(parts)


def _exit_codes() -> str:
    rows = [f"| {code} | {meaning} |" for code, meaning in exit_codes.MEANINGS.items()]
    after = "\nAn error is one line on standard error: what, where, and the way out.\n"
    return "\n".join(["## Exit codes\n", "| code | meaning |", "|---|---|", *rows, after])


def subparsers(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """The commands below `parser`, by name; none where it has none."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}


def _command(name: str, parser: argparse.ArgumentParser) -> list[str]:
    description = re.sub(r"^`[^`]*`: ", "", parser.description or "")
    parts = [f"## eagle3 {name}\n", f"{description[:1].upper()}{description[1:]}\n", "```text", _usage(parser), "```\n"]
    for group in parser._action_groups:
        actions = [action for action in group._group_actions if action.help != argparse.SUPPRESS]
        if actions:
            # the division keeps a flag on one line
            head = f"**{(group.title or '').capitalize()}**\n"
            parts += [head, '<div class="flags" markdown>\n', "| | what it does |", "|---|---|"]
            parts += [f"| {_words(action, parser)} | {_help(action, parser)} |" for action in actions]
            parts.append("\n</div>\n")
    if parser.epilog:
        parts += ["```text", parser.epilog.strip("\n"), "```\n"]
    return parts


def _usage(parser: argparse.ArgumentParser) -> str:
    return parser.format_usage().removeprefix("usage: ").rstrip()


def _words(action: argparse.Action, parser: argparse.ArgumentParser) -> str:
    """`--flag VALUE` and its other names, or a positional's name, as one cell."""
    formatter = parser._get_formatter()
    if not action.option_strings:
        return _code(formatter._format_args(action, action.dest))
    first, *others = action.option_strings
    value = "" if action.nargs == 0 else " " + formatter._format_args(action, action.dest.upper())
    return ", ".join(map(_code, [first + value, *others]))


def _code(text: str) -> str:
    return f"`{text}`".replace("|", "\\|")


def _help(action: argparse.Action, parser: argparse.ArgumentParser) -> str:
    text = parser._get_formatter()._expand_help(action) if action.help else ""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
