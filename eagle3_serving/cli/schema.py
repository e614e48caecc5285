"""`eagle3 schema`: what `--json` of a command prints, as a JSON Schema (draft 2020-12)."""

import argparse
from pathlib import Path

from eagle3_serving.cli.parser import Parser

SCHEMAS = Path(__file__).with_name("schemas")
_ALIKE = {"demo": "eval"}  # what prints as another does
_EXAMPLES = """examples:
  eagle3 schema                      # the commands that have one
  eagle3 schema eval > eval.json     # for a program that reads `eagle3 eval --json`

A command's object is the last line of its standard output. A key that is there today keeps its name and meaning.
"""


def add_parser(subparsers: "argparse._SubParsersAction[Parser]") -> None:
    parser = subparsers.add_parser(
        "schema",
        help="print the JSON Schema of what a command's --json prints",
        description=__doc__,
        epilog=_EXAMPLES,
    )
    parser.add_argument("of", nargs="?", choices=names(), metavar="COMMAND", help=", ".join(names()))
    parser.set_defaults(run=run)


def names() -> list[str]:
    """Commands that have a schema."""
    return sorted([*(file.stem for file in SCHEMAS.glob("*.json")), *_ALIKE])


def schema_of(command: str) -> str:
    """Its text."""
    return (SCHEMAS / f"{_ALIKE.get(command, command)}.json").read_text(encoding="utf-8")


def run(args: argparse.Namespace) -> int:
    print("\n".join(names()) if args.of is None else schema_of(args.of), end="\n" if args.of is None else "")
    return 0
