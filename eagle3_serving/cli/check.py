"""`eagle3 check`: is a drafter whole, and what would each engine make of it?"""

import argparse
import json
from pathlib import Path

from eagle3_serving.cli import exit_codes
from eagle3_serving.cli.arguments import add_json
from eagle3_serving.cli.convert import CONVENTIONS, DIALECTS, NORM_OUTPUTS
from eagle3_serving.cli.parser import Parser
from eagle3_serving.hub import require_source

_EXAMPLES = """examples:
  eagle3 check checkpoints/smollm2-135m-instruct
  eagle3 check DIR --engine sglang --target models/llama-3.1-8b
  eagle3 check DIR --num-target-layers 32 --json

error: it is broken, or the engine refuses it. silent: the engine loads it and is wrong, in silence. Either: not right, exit
code 1. unjudged: nothing is known to be wrong, and something is not computed here (an MLA drafter, say, or a key that is not
known): "not judged here", exit code 3, `"ok": null` with --json; `eagle3 serve` passes it through with a line.
warning: less may be accepted. note: good to know. With a target, depth, sizes, positions and embedding are compared too.
"""
ENGINES = ("vllm", "sglang", "eagle")  # a test compares them with the checkpoint package's own
_STYLES = {"error": "bold red", "silent": "red", "unjudged": "magenta", "warning": "yellow", "note": "dim"}
_EXIT_CODES = {True: exit_codes.DONE, False: exit_codes.NOT_RIGHT, None: exit_codes.NOT_JUDGED}


def add_parser(subparsers: "argparse._SubParsersAction[Parser]") -> None:
    parser = subparsers.add_parser(
        "check",
        help="what is wrong with a drafter, and what vLLM and SGLang would make of it",
        description=__doc__,
        epilog=_EXAMPLES,
    )
    parser.add_argument("drafter", metavar="DIR", help="directory of the drafter, or a hub id (owner/name)")
    parser.add_argument("--engine", choices=ENGINES, help="whose behaviour to tell (default: vLLM's and SGLang's)")
    depth = parser.add_mutually_exclusive_group()
    depth.add_argument("--target", type=Path, metavar="DIR", help="directory of the target")
    depth.add_argument("--num-target-layers", type=int, metavar="N", help="the target's depth alone")
    parser.add_argument(
        "--aux-convention", choices=CONVENTIONS, help="what the layer ids count, where it cannot be told"
    )
    parser.add_argument(
        "--norm-output", choices=NORM_OUTPUTS, help="what norm_output: true means, where it cannot be told"
    )
    parser.add_argument("--from", dest="dialect", choices=DIALECTS, help="what DIR is (default: told by its marks)")
    add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    require_source(args.drafter)
    from eagle3_serving.checkpoint.check import check
    from eagle3_serving.checkpoint.findings import verdict
    from eagle3_serving.checkpoint.source import resolve

    found = check(
        resolve(args.drafter),
        engine=args.engine,
        target=args.target,
        num_target_layers=args.num_target_layers,
        aux_convention=args.aux_convention,
        dialect=args.dialect,
        norm_output=args.norm_output,
    )
    ok = verdict(found)
    if args.json:
        print(json.dumps({"ok": ok, "findings": [finding.to_json() for finding in found]}))
        return _EXIT_CODES[ok]
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("severity", "engine", "finding")
    for finding in found:
        text = Text(finding.where, "bold") + Text(f" {finding.what}")
        if finding.fix:
            text += Text(f"\n-> {finding.fix}", "green")
        table.add_row(Text(finding.severity, _STYLES[finding.severity]), finding.engine, text)
    console = Console()
    if found:
        console.print(table)
    whose = args.engine or "vLLM and SGLang"
    said = {True: f"right for {whose}", False: f"not right for {whose}", None: "not judged here"}[ok]
    if ok is None:
        said += f": {'; '.join(finding.where for finding in found if finding.unjudged)}"
    console.print(f"{args.drafter}: {said}", markup=False, soft_wrap=True)
    return _EXIT_CODES[ok]
