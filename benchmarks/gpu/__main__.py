"""Every question about a GPU, asked in one command: probe, correctness, tree attention, drafting, the batch curve, training,
the engines' plugins, and real vLLM and SGLang beside plain decoding.

Each step is a process with its own time limit, so that one that hangs or crashes leaves the others. Its rows stand in
OUT/STEP.jsonl as soon as they are measured; the same command goes on where it was stopped, and passes over steps that are
done with the same inputs. A table of everything comes last, and stands in OUT/summary.txt.
"""

import argparse
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from benchmarks.gpu.live.contenders import check_names
from benchmarks.gpu.plan import STEPS, parse_plan, run_plan
from benchmarks.gpu.settings import Settings
from benchmarks.gpu.summary import summary
from eagle3_serving.dtypes import TORCH
from eagle3_serving.errors import Eagle3Error, InputError

_EXAMPLES = f"""examples:
  python -m benchmarks.gpu --plan {",".join(STEPS)} --out DIR
  python -m benchmarks.gpu --plan probe,attention=3,curve=6 --out DIR        (limits in minutes)
  python -m benchmarks.gpu --plan probe,correctness,attention,draft,curve,train,engines --out DIR --device cpu --tiny
  python -m benchmarks.gpu --plan curve --batches 1,8,64 --rate 0.7 --out DIR
  python -m benchmarks.gpu --steps vllm --deadline 560 --target DIR --out DIR      (real vLLM, under ten minutes)
  python -m benchmarks.gpu --steps sglang --contenders 1:4:3,auto --in-flight 1,64 --out DIR
  python -m benchmarks.gpu --summary --out DIR                               (of what is there)

How to bring all that is needed to a machine without a network, and the results back: benchmarks/gpu/README.md.
"""
_LISTS = {
    "batches": int,
    "in_flight": int,
    "pairs": str,
    "contenders": str,
    "prompts": str,
    "eval_prompts": str,
    "answers": str,
}
_HELP = {
    "device": "cuda, cuda:1 or cpu (default cuda)",
    "tiny": "toy sizes everywhere: a rehearsal",
    "target": "directory of SmolLM2-135M-Instruct, for correctness, train, vllm and sglang",
    "drafter": "its drafter, for correctness, vllm and sglang (default: the one that ships)",
    "prompts": "prompt files for train, with commas",
    "eval_prompts": "held-out prompt files, with commas",
    "answers": "answers that the target gave before, with commas: train then generates the fewer",
    "minutes": "what train may take, generation and evaluation included",
    "rate": "simulated acceptance: the mean chance of a node's best child",
    "siblings": "simulated acceptance: the share of the rest that its siblings hold",
    "context": "tokens that each request holds when the curve begins",
    "tokens": "about how many tokens a request decodes in a round of the curve",
    "batches": "batch sizes of draft and curve, with commas",
    "graphs": "CUDA graphs where they serve",
    "engine_python": "an interpreter that has vLLM or SGLang (default: this one)",
    "in_flight": "requests in flight at which the steps vllm and sglang measure, with commas (default 1,4,16,64)",
    "pairs": "what those steps serve: shape (Llama-3.1-8B's, weights made up), real (--target); default both",
    "contenders": "engines of those steps, with commas (default: all), vLLM's tree-16 or tree-16-d8-k10 (depth, top-k), either with -fp8 (the drafter's weights), SGLang's 3:4:8",
    "rounds": "how often each engine is measured at each number in flight, in turns",
    "graph_mode": "vLLM's cudagraph_mode for trees, PIECEWISE say (default: what vLLM and the plugin agree on)",
    "attention_backend": "as the engine names it (default: vLLM's own choice, SGLang's triton)",
    "engine_dtype": "bfloat16, float16 or float32 of those engines, answers in the last held to be plain decoding's token for token (default: bfloat16 on a GPU)",
    "deadline": "seconds that a step on real engines may take, its start included (default: the step's limit)",
    "ablations": "NAME:option=value,... of train, each a run beside the full one; may be repeated",
}


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description=__doc__,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--plan", "--steps", dest="plan", help=f"steps with commas: {','.join(STEPS)}")
    made.add_argument("--out", type=Path, required=True, help="directory of the results")
    made.add_argument("--summary", action="store_true", help="only the table of what OUT holds")
    for field in fields(Settings):
        name, default = f"--{field.name.replace('_', '-')}", field.default
        help_text = _HELP.get(field.name, f"(default {default})")
        if field.name in _LISTS:
            kind = _LISTS[field.name]
            made.add_argument(name, type=partial(_list, kind), default=default, help=help_text)
        elif field.name == "ablations":
            made.add_argument(name, action="append", help=help_text)
        elif isinstance(default, bool):
            made.add_argument(name, action=argparse.BooleanOptionalAction, default=default, help=help_text)
        else:
            made.add_argument(name, type=type(default), default=default, help=help_text)
    return made


def _list(kind: Callable[[str], Any], text: str) -> tuple[Any, ...]:
    try:
        return tuple(kind(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: whole numbers with commas between") from None


def settings_of(args: argparse.Namespace) -> Settings:
    """Raises InputError where a value is out of range or there is no such device."""
    told = {field.name: getattr(args, field.name) for field in fields(Settings)}
    told["ablations"] = tuple(args.ablations) if args.ablations else Settings.ablations
    settings = Settings(**told)
    try:
        kind = settings.torch_device.type
    except RuntimeError:
        raise InputError(f"--device {settings.device} is not known: cuda, cuda:1 or cpu") from None
    if kind == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: no CUDA device here; --device cpu --tiny rehearses every step")
    if kind not in ("cuda", "cpu"):
        raise InputError(f"--device {settings.device} is not served: cuda, cuda:1 or cpu")
    if not 0 < settings.rate < 1 or not 0 <= settings.siblings <= 1:
        raise InputError("--rate must lie between 0 and 1, --siblings from 0 to 1")
    if min(settings.batches) < 1 or settings.minutes <= 0 or settings.tokens < 4 or settings.context < 8:
        raise InputError("--batches and --minutes must be above 0, --tokens at least 4, --context at least 8")
    if min(settings.in_flight) < 1 or settings.rounds < 1 or settings.deadline < 0:
        raise InputError("--in-flight and --rounds must be at least 1, --deadline not below 0")
    if not settings.pairs or not set(settings.pairs) <= set(Settings.pairs):
        raise InputError(f"--pairs {','.join(settings.pairs)}: shape, real, or both")
    if settings.engine_dtype not in ("", *TORCH.values()):
        raise InputError(f"--engine-dtype {settings.engine_dtype}: {', '.join(TORCH.values())}")
    check_names(settings.contenders)
    for name in ("target", "drafter"):
        path = getattr(settings, name)
        if path and not (Path(path) / "config.json").is_file():
            raise InputError(f"--{name} {path} holds no config.json")
    for path in (*settings.prompts, *settings.eval_prompts, *settings.answers):
        if not Path(path).exists():
            raise InputError(f"no file at {path}")
    return settings


def _stop(*_: int | FrameType | None) -> None:
    raise KeyboardInterrupt


def main(arguments: Sequence[str] | None = None) -> int:
    args = parser().parse_args(arguments)
    try:
        if args.summary:
            print(summary(args.out), end="")
            return 0
        if not args.plan:
            raise InputError("--plan is missing: which steps, with commas")
        steps, settings = parse_plan(args.plan), settings_of(args)
    except Eagle3Error as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    signal.signal(signal.SIGTERM, _stop)  # the step that runs is ended too
    try:
        ended = run_plan(steps, settings, args.out)
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130
    text = summary(args.out, ended)
    (args.out / "summary.txt").write_text(text, encoding="utf-8")
    print(f"\n{text}", end="")
    return int(any(end["status"] in ("failed", "wrong", "out of time") for end in ended.values()))


if __name__ == "__main__":
    raise SystemExit(main())
