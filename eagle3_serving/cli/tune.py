"""`eagle3 tune`: should a drafter be on, with which numbers, on this machine, at this load? And the profile that says so."""

import argparse
import json
from pathlib import Path

from eagle3_serving.cli import arguments
from eagle3_serving.cli.arguments import add_dtype, add_json, add_pair, resolve_dtype
from eagle3_serving.cli.bench import whole_numbers
from eagle3_serving.cli.parser import Parser
from eagle3_serving.eval.options import ENGINES

_EXAMPLES = """examples:
  eagle3 tune --engine vllm --target DIR --drafter DIR --out profile.json
  eagle3 tune --engine vllm --target DIR --drafter DIR --out profile.json --traffic mine.jsonl --concurrency 1,8,32 --dtype bf16
  eagle3 tune --engine sglang --target DIR --drafter DIR --out profile.json --verify

It measures what steps cost and drafts yield (some minutes), writes the profile that the plugins read (EAGLE3_PROFILE,
eagle3 serve --profile), and prints for each load what to expect and the command. A line of traffic is
{"id": ..., "family": ..., "turns": ["..."]}. --verify then runs eagle3 bench at the same loads and shows both.
"""


def add_parser(subparsers: "argparse._SubParsersAction[Parser]") -> None:
    parser = subparsers.add_parser(
        "tune",
        help="what pays at your load: measures, writes the profile, prints the command",
        description=__doc__,
        epilog=_EXAMPLES,
    )
    parser.add_argument("--engine", choices=ENGINES, required=True)
    add_pair(parser)
    parser.add_argument("--out", type=Path, required=True, help="the profile")
    parser.add_argument(
        "--traffic", type=Path, nargs="+", default=[], help="your own prompts (default: a dozen of ours)"
    )
    parser.add_argument(
        *arguments.CONCURRENCY,
        type=whole_numbers,
        default=(1, 4, 16),
        help="loads in requests in flight (default 1,4,16)",
    )
    parser.add_argument(*arguments.TOKENS, type=int, default=64, help="tokens an answer (default 64)")
    parser.add_argument("--limit", type=int, default=16, help="prompts of the traffic that are asked (default 16)")
    parser.add_argument("--repeats", type=int, default=2, help="rounds (default 2)")
    add_dtype(parser, "fp32")
    parser.add_argument("--verify", action="store_true", help="measure the loads afterwards, beside the prediction")
    add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from eagle3_serving.tune.options import TuneOptions

    options = TuneOptions(
        engine=args.engine,
        target=args.target,
        drafter=args.drafter,
        out=args.out,
        traffic=tuple(args.traffic),
        concurrency=args.concurrency,
        tokens=args.tokens,
        limit=args.limit,
        repeats=args.repeats,
        dtype=resolve_dtype(args.dtype, args.target),
        verify=args.verify,
    )
    from eagle3_serving.serve.servable import require_pair
    from eagle3_serving.tune.run import tune

    if options.engine != "embedded":
        require_pair(options.drafter, options.target)

    found = tune(options)
    if args.json:
        from eagle3_serving.eval.context import length_json
        from eagle3_serving.tune.advice import QUANTITY

        said = {
            "engine": options.engine,
            "profile": str(options.out),
            "quantity": QUANTITY,
            "tokens": options.tokens,
            "loads": [one.to_json() for one in found.advice],
            "commands": dict(zip(("on", "off"), found.commands, strict=True)),
            "accepted_length_by_text": length_json(found.accepted_length_by_text),
            "verified": [one.to_json() for one in found.verified],
        }
        print(json.dumps(said), flush=True)
    else:
        from rich.console import Console

        from eagle3_serving.tune.report import print_advice

        print_advice(options, found.advice, found.commands, found.verified, found.accepted_length_by_text, Console())
    return 0
