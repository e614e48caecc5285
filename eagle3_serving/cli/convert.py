"""`eagle3 convert`, also `eagle3-convert`: a drafter of any dialect, written as another, with proof."""

import argparse
import json
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from eagle3_serving.cli.arguments import add_dtype, add_json
from eagle3_serving.cli.parser import Parser
from eagle3_serving.errors import InputError
from eagle3_serving.files import require_absent
from eagle3_serving.hub import require_source

_EXAMPLES = """examples:
  eagle3-convert yuhuili/EAGLE3-LLaMA3.1-Instruct-8B drafters/llama --to universal --num-target-layers 32
  eagle3-convert drafters/specforge drafters/vllm --to vllm --target models/qwen3-8b
  eagle3-convert drafters/mine drafters/mine-speculators --to speculators --target models/mine --dtype bfloat16
  eagle3-convert drafters/odd drafters/sglang --to sglang --aux-convention output --json

SRC: SafeAILab/EAGLE, SpecForge, SGLang, vLLM, speculators, ModelOpt or AngelSlim; a directory or a hub id. DST appears whole,
after source and output have been run side by side, or not at all. `universal` is one directory for vLLM and SGLang.
"""

# the checkpoint package's own names, written here so that a parser is made without importing torch; a test compares them
WRITABLE = ("vllm", "sglang", "universal", "speculators", "eagle")
DIALECTS = ("speculators", "modelopt", "angelslim", "universal", "vllm", "specforge", "sglang", "eagle")
CONVENTIONS = ("boundary", "output")
NORM_OUTPUTS = ("feedback", "final-norm")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SRC", help="directory of the drafter, or a hub id (owner/name)")
    parser.add_argument("destination", metavar="DST", type=Path, help="directory to make; it must not exist")
    parser.add_argument("--to", required=True, choices=WRITABLE, help="who is to read it")
    depth = parser.add_mutually_exclusive_group()
    depth.add_argument("--target", type=Path, metavar="DIR", help="directory of the target: its depth, embedding, head")
    depth.add_argument("--num-target-layers", type=int, metavar="N", help="the target's depth alone")
    parser.add_argument(
        "--aux-convention",
        choices=CONVENTIONS,
        help="what the source's layer ids count, where it cannot be told: inputs of layers, or outputs",
    )
    parser.add_argument(
        "--norm-output",
        choices=NORM_OUTPUTS,
        help="what the source's norm_output: true means, where it cannot be told: the post-norm state is fed back, or (SpecForge "
        "before September 2026) the final norm stands before the head",
    )
    parser.add_argument("--from", dest="dialect", choices=DIALECTS, help="what SRC is (default: told by its marks)")
    add_dtype(parser, None, "cast weights (default and auto: as they are): ")
    parser.add_argument("--no-parity", action="store_true", help="leave out the proof; the report says so")
    add_json(parser)
    parser.set_defaults(run=run)


def add_parser(subparsers: "argparse._SubParsersAction[Parser]") -> None:
    add_arguments(
        subparsers.add_parser(
            "convert",
            help="write a drafter in another dialect, with proof that it is the same",
            description=__doc__,
            epilog=_EXAMPLES,
        )
    )


def script_parser() -> Parser:
    """Of the console script `eagle3-convert`."""
    parser = Parser(prog="eagle3-convert", description=__doc__, epilog=_EXAMPLES)
    parser.set_defaults(command="convert")
    add_arguments(parser)
    return parser


def run(args: argparse.Namespace) -> int:
    require_source(args.source)
    require_absent(args.destination)
    from tqdm import tqdm

    from eagle3_serving.checkpoint.convert import convert
    from eagle3_serving.checkpoint.write import Progress

    def progress(total: int, _: int) -> Progress:
        bar = tqdm(total=total, unit="B", unit_scale=True, desc="writing", leave=False, disable=not sys.stderr.isatty())

        def tell(count: int) -> None:
            bar.update(count)

        return tell

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)  # what was begun is removed, as on Ctrl-C
    try:
        report = convert(
            args.source,
            args.destination,
            to=args.to,
            target=args.target,
            num_target_layers=args.num_target_layers,
            aux_convention=args.aux_convention,
            dialect=args.dialect,
            norm_output=args.norm_output,
            dtype=args.dtype,
            parity=not args.no_parity,
            progress=progress,
        )
    except OSError as error:
        raise InputError(f"{error.filename or args.destination}: {error.strerror or error}") from None
    finally:
        signal.signal(signal.SIGTERM, before)
    if args.json:
        print(json.dumps(report.to_json()))
        return 0
    where = (
        f"boundaries {list(report.aux_boundaries)} ({report.aux_how})" if report.aux_boundaries else "default layers"
    )
    print(
        f"{report.source}: {report.source_dialect}, {report.tensors} tensors, {where}; blake3 {report.source_blake3[:16]}..."
    )
    for line in [finding.line() for finding in report.findings] + list(report.notes):
        print(f"  note: {line}")
    for proof in report.parity:
        agree = "every token agrees" if proof.tokens_equal else "TOKENS DIFFER"
        print(
            f"  parity with {proof.engine}: {proof.steps} steps, {agree}, logits differ by {proof.max_difference:.3g}"
        )
    if report.parity_note:
        print(f"  {report.parity_note}")
    print(f"{report.destination}: {report.to}, {report.bytes / 1e6:.1f} MB in {report.seconds:.1f} s")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """The console script `eagle3-convert`."""
    from eagle3_serving.cli.main import main as eagle3

    return eagle3(argv, script_parser())
