"""`eagle3 bench`: throughput by load: plain decoding, the engine's own EAGLE-3 and ours, in one run."""

import argparse
import importlib.util
import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from eagle3_serving.bench.options import CONCURRENCY, BenchOptions
from eagle3_serving.bench.setting import DEFAULTS, FORMS
from eagle3_serving.cli import arguments
from eagle3_serving.cli.arguments import add_dtype, add_json, add_subject, resolve_dtype
from eagle3_serving.cli.parser import Parser
from eagle3_serving.eval.options import ENGINES
from eagle3_serving.files import write_whole

if TYPE_CHECKING:
    from eagle3_serving.bench.record import Row
    from eagle3_serving.bench.summary import Point

_EXAMPLES = """examples:
  eagle3 bench --engine vllm --target DIR --drafter DIR --prompts prompts.jsonl --concurrency 1,4,16 --out runs/vllm.jsonl
  eagle3 bench --engine sglang --target DIR --drafter DIR --prompts prompts.jsonl --settings plain,own-chain-3,auto --out runs/sglang.jsonl
  eagle3 bench --engine vllm --url plain=http://a:8000 --url auto=http://b:8000 --settings plain,auto ...
  eagle3 bench --engine vllm --settings plain,own-chain-5 --simulate-acceptance 0.8 ...

The same command goes on where it was stopped. OUT.jsonl holds every measurement as it came; OUT.speedup.png,
OUT.users.png and OUT.html are made from it at the end, and again by the same command.
"""


def add_parser(subparsers: "argparse._SubParsersAction[Parser]") -> None:
    parser = subparsers.add_parser(
        "bench",
        help="throughput by load: plain, the engine's own EAGLE-3, ours",
        description=__doc__,
        epilog=_EXAMPLES,
    )
    parser.add_argument("--engine", choices=ENGINES, required=True)
    add_subject(parser)
    parser.add_argument("--out", type=Path, required=True, help="OUT.jsonl; plots and report beside it")
    usual = "; ".join(f"{engine}: {','.join(names)}" for engine, names in DEFAULTS.items())
    parser.add_argument("--settings", type=_names, default=(), help=f"{FORMS} (default: {usual})")
    parser.add_argument(
        *arguments.CONCURRENCY,
        type=whole_numbers,
        default=CONCURRENCY,
        help=f"requests in flight (default {','.join(map(str, CONCURRENCY))})",
    )
    parser.add_argument("--temperature", type=_numbers, default=(0.0,), help="one or more, as 0,1 (default 0)")
    parser.add_argument(*arguments.TOKENS, type=int, default=64, help="tokens an answer (default 64)")
    parser.add_argument("--natural-end", action="store_true", help="an end token ends an answer earlier")
    parser.add_argument("--least", type=int, default=8, help="requests a cell at low concurrency (default 8)")
    parser.add_argument("--repeats", type=int, default=3, help="rounds (default 3)")
    parser.add_argument("--limit", type=int, help="only the first N prompts of each family")
    add_dtype(parser, "fp32")
    parser.add_argument("--profile", type=Path, help="what auto decides by (eagle3 tune writes it)")
    parser.add_argument("--url", type=_url, action="append", default=[], metavar="SETTING=URL", help="a running server")
    parser.add_argument("--engine-args", type=shlex.split, default=[], help="more arguments for every server started")
    parser.add_argument(
        "--simulate-acceptance", type=float, metavar="R", help="accept at this rate a depth; the rest is real"
    )
    parser.add_argument("--timeout", type=float, default=600.0, help="seconds a request may take (default 600)")
    add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    options = BenchOptions(
        engine=args.engine,
        target=args.target,
        drafter=args.drafter,
        prompts=tuple(args.prompts),
        out=args.out,
        settings=args.settings,
        concurrency=args.concurrency,
        temperatures=args.temperature,
        tokens=args.tokens,
        natural_end=args.natural_end,
        least=args.least,
        repeats=args.repeats,
        limit=args.limit,
        dtype=resolve_dtype(args.dtype, args.target),
        urls=dict(args.url),
        simulate=args.simulate_acceptance,
        profile=args.profile,
        engine_args=tuple(args.engine_args),
        timeout_s=args.timeout,
    )
    from eagle3_serving.bench.record import read_record
    from eagle3_serving.bench.summary import laws, summarise
    from eagle3_serving.bench.sweep import run_sweep
    from eagle3_serving.serve.servable import require_pair

    if options.engine != "embedded" and not options.urls:
        require_pair(options.drafter, options.target)
    run_sweep(options)
    head, rows = read_record(options.out)
    points, found = summarise(head, rows), laws(rows)
    _write(options.out, head, points)
    if args.json:
        told = [{"temperature": at, "mode": setting, **law} for (at, setting), law in found.items()]
        print(json.dumps({"rows": [point.to_json() for point in points], "laws": told}), flush=True)
    else:
        from rich.console import Console

        from eagle3_serving.bench.table import print_points

        print_points(head, points, Console())
    wrong = [(at, setting, law) for (at, setting), law in found.items() if not law["lawful"]]
    for at, setting, law in wrong:
        print(
            f"eagle3 bench: {setting} at T={at:g} does not sample by the target's law (p = {law['p_value']:.2g} over "
            f"{law['draws']} answers): it is left out, for a speed of wrong text says nothing",
            file=sys.stderr,
        )
    return int(bool(wrong) or any(point.identical is False for point in points))


def _write(out: Path, head: "Row", points: "list[Point]") -> None:
    """The report and, for every temperature, its two plots; nothing where matplotlib is missing."""
    if importlib.util.find_spec("matplotlib") is None:
        print("no plots: pip install 'eagle3-serving[bench]' brings matplotlib", file=sys.stderr)
        return
    from eagle3_serving.bench.page import page
    from eagle3_serving.bench.plots import frontier_png, speedup_png

    write_whole(out.with_suffix(".html"), page(head, points, shlex.join(["eagle3", *sys.argv[1:]])))
    for temperature in sorted({point.temperature for point in points}):
        at = f"-T{temperature:g}" if temperature else ""
        write_whole(out.with_suffix(f".speedup{at}.png"), speedup_png(head, points, temperature))
        write_whole(out.with_suffix(f".users{at}.png"), frontier_png(head, points, temperature))


def _names(text: str) -> tuple[str, ...]:
    return tuple(name for name in text.split(",") if name)


def whole_numbers(text: str) -> tuple[int, ...]:
    return tuple(int(n) for n in text.split(","))


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(float(n) for n in text.split(","))


def _url(text: str) -> tuple[str, str]:
    name, _, url = text.partition("=")
    if not url.startswith(("http://", "https://")):
        raise argparse.ArgumentTypeError(f"{text!r} is not SETTING=http://...")
    return name, url
