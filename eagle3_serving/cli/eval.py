"""`eagle3 eval`: acceptance and speed of a drafter on prompts, against plain decoding on the same engine."""

import argparse
import json
from collections.abc import Callable
from dataclasses import fields
from typing import TYPE_CHECKING

from eagle3_serving.cli.arguments import add_draft, add_dtype, add_json, add_subject, resolve_dtype
from eagle3_serving.cli.parser import Parser
from eagle3_serving.eval.options import ENGINES, MODES, EvalOptions

if TYPE_CHECKING:
    from eagle3_serving.eval.report import EvalReport

_EXAMPLES = """examples:
  eagle3 eval --engine vllm --target DIR --drafter checkpoints/smollm2-135m-instruct --prompts prompts.jsonl --k 3
  eagle3 eval --engine embedded --target DIR --drafter DIR --prompts a.jsonl b.jsonl --limit 10 --json
  eagle3 eval --engine embedded --mode auto --batch 8 --target DIR --drafter DIR --prompts prompts.jsonl
  eagle3 eval --engine sglang --mode auto --batch 4 --target DIR --drafter DIR --prompts prompts.jsonl

A prompt is a JSON line {"id": ..., "family": ..., "turns": [...]}; a directory stands for its *.jsonl files.
"""


def add_parser(subparsers: "argparse._SubParsersAction[Parser]") -> None:
    parser = subparsers.add_parser(
        "eval",
        help="measure a drafter: accepted length, speed against plain decoding, identity",
        description=__doc__,
        epilog=_EXAMPLES,
    )
    parser.add_argument("--engine", choices=ENGINES, required=True)
    add_subject(parser)
    parser.add_argument("--mode", choices=MODES, default="chain")
    add_draft(parser)
    parser.add_argument("--batch", type=int, default=1, help="requests in flight (default 1)")
    add_dtype(parser, "fp32")
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--top-p", type=float, default=1.0, help="nucleus of a sampled answer (default 1: off)")
    parser.add_argument("--min-p", type=float, default=0.0, help="least share of the best token (default 0: off)")
    parser.add_argument(
        "--proposals",
        choices=("coupled", "top", "drawn"),
        default="coupled",
        help="at a temperature: draft tokens by the noise that decides the draw, the most probable ones, or draws (default coupled)",
    )
    parser.add_argument("--max-tokens", type=int, default=128, help="tokens an answer (default 128)")
    parser.add_argument("--limit", type=int, help="only the first N prompts of each family")
    parser.add_argument("--repeats", type=int, default=1, help="timed rounds; the median is reported (default 1)")
    add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    values = {option.name: getattr(args, option.name) for option in fields(EvalOptions)}
    options = EvalOptions(**{**values, "prompts": tuple(args.prompts), "dtype": resolve_dtype(args.dtype, args.target)})
    from eagle3_serving.eval.law import LawError

    if options.engine != "embedded":
        from eagle3_serving.serve.servable import require_pair

        require_pair(options.drafter, options.target)

    try:
        report = _runner(options.engine)(options)
    except LawError as error:
        if args.json:
            about = {name: getattr(options, name) for name in ("engine", "mode", "batch", "dtype", "temperature")}
            print(json.dumps({**about, "law": error.found.to_json()}), flush=True)
        raise
    if args.json:
        print(json.dumps(report.to_json()), flush=True)
    else:
        from rich.console import Console

        from eagle3_serving.eval.report import print_report

        print_report(report, Console())
    return 1 if report.overall.identical is False else 0


def _runner(engine: str) -> "Callable[[EvalOptions], EvalReport]":
    # Imported late: an engine's needs must not be asked of the users of another.
    if engine == "vllm":
        from eagle3_serving.eval.vllm import run_vllm

        return run_vllm
    if engine == "embedded":
        from eagle3_serving.eval.embedded import run_embedded

        return run_embedded
    from eagle3_serving.eval.sglang import run_sglang

    return run_sglang
