"""`eagle3 demo`: the same questions to plain vLLM and to vLLM with the drafter, side by side."""

import argparse
import json
import sys
from pathlib import Path

from eagle3_serving.cli import arguments
from eagle3_serving.cli.arguments import add_dtype, resolve_dtype
from eagle3_serving.cli.parser import Parser

_EXAMPLES = """examples:
  eagle3 demo
  eagle3 demo --k 3 --max-tokens 96
  eagle3 demo --target DIR --drafter DIR --json
"""


def add_parser(subparsers: "argparse._SubParsersAction[Parser]") -> None:
    parser = subparsers.add_parser(
        "demo",
        help="watch plain and speculative decoding answer the same questions",
        description=__doc__,
        epilog=_EXAMPLES,
    )
    parser.add_argument(
        *arguments.TARGET, type=Path, help="directory of the target (default: the embedded SmolLM2-135M)"
    )
    parser.add_argument(*arguments.DRAFTER, type=Path, help="directory of the drafter (default: the one that ships)")
    parser.add_argument(*arguments.CHAIN, type=int, help="draft tokens a step")
    parser.add_argument("--max-tokens", type=int, default=64, help="tokens an answer (default 64)")
    add_dtype(parser, "fp32")
    parser.add_argument("--json", action="store_true", help="only the JSON line on standard output")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from rich.console import Console

    from eagle3_serving.demo import DEFAULT_K, DemoOptions, default_drafter, run_demo
    from eagle3_serving.eval.report import print_report
    from eagle3_serving.serve.servable import require_pair
    from eagle3_serving.serve.vllm import require_vllm

    require_vllm()  # before the target is fetched
    drafter: Path = args.drafter or default_drafter()
    target: Path = args.target or _embedded_target()
    require_pair(drafter, target)
    k: int = DEFAULT_K if args.k is None else args.k
    # With --json the show goes to stderr: standard output is for the program that reads it.
    console = Console(file=sys.stderr if args.json else sys.stdout)
    report = run_demo(DemoOptions(target, drafter, k, args.max_tokens, resolve_dtype(args.dtype, target)), console)
    console.print()
    print_report(report, console)
    print(json.dumps(report.to_json()), flush=True)
    return 1 if report.overall.identical is False else 0


def _embedded_target() -> Path:
    from eagle3_serving.targets.smollm2 import fetch_target

    return fetch_target()
