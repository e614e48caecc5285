"""What the machinery gives when the drafter is good: a drafter over-fitted to a few prompts, then measured on vLLM.

    python -m benchmarks.overfit --out runs/overfit --k 4 --repeats 3 --json

The drafter learns the target's own greedy answers to the very prompts that it is then measured on, so that nearly all
it proposes is accepted. It says nothing about a drafter's quality: it bounds what speculation can give on a machine.
"""

import argparse
import importlib.resources
import json
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from eagle3_serving.cli.arguments import add_dtype, resolve_dtype
from eagle3_serving.engine import DecodeOptions, EmbeddedEngine
from eagle3_serving.eval.options import EvalOptions
from eagle3_serving.eval.prompts import read_prompts
from eagle3_serving.eval.report import print_report
from eagle3_serving.eval.vllm import run_vllm
from eagle3_serving.targets.chat import chat_ids, load_tokenizer
from eagle3_serving.targets.smollm2 import fetch_target
from eagle3_serving.train.job import train
from eagle3_serving.train.options import TrainJob, TrainOptions

ROUNDS = 160
TTT_STEPS = 5
DRAFT_VOCAB_SIZE = 2048


def overfit(target: Path, prompts: Sequence[str], out: Path, max_tokens: int, rounds: int = ROUNDS) -> Path:
    """A drafter that has seen the target's fp32 greedy answers to `prompts` `rounds` times; its directory."""
    out.mkdir(parents=True, exist_ok=True)
    answers = out / "answers.jsonl"
    if not answers.exists():
        tokenizer = load_tokenizer(target)
        engine = EmbeddedEngine.load(target)
        lines = []
        for number, prompt in enumerate(prompts):
            prompt_ids = chat_ids(tokenizer, prompt)
            said = engine.generate(prompt_ids, DecodeOptions(max_tokens, "plain")).token_ids
            lines.append(json.dumps({"id": str(number), "prompt_ids": prompt_ids, "response_ids": said}))
        beside = answers.with_name(".answers.partial")
        beside.write_text("\n".join(lines) + "\n", encoding="utf-8")
        beside.replace(answers)
    tokens = sum(len(json.loads(line)["response_ids"]) for line in answers.read_text(encoding="utf-8").splitlines())
    options = TrainOptions(
        tokens=tokens * rounds,
        ttt_steps=TTT_STEPS,
        step_decay=1.0,
        learning_rate=1e-3,
        fusion_learning_rate=2e-4,
        tokens_per_batch=2048,
        save_every=1_000_000,
    )
    job = TrainJob(target, out, answers=(answers,), held_out=0, draft_vocab_size=DRAFT_VOCAB_SIZE, options=options)
    return train(job).directory


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", type=Path, help="directory of the target (default: SmolLM2-135M-Instruct)")
    parser.add_argument("--prompts", type=Path, nargs="+", help="prompt files (default: the demo's ten)")
    parser.add_argument("--out", type=Path, required=True, help="directory of the run; used again where it is whole")
    parser.add_argument("--k", type=int, default=4, help="draft tokens of a chain (default 4)")
    add_dtype(parser, "fp32")
    parser.add_argument("--max-tokens", type=int, default=64, help="tokens an answer (default 64)")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"how often each answer is seen (default {ROUNDS})")
    parser.add_argument("--repeats", type=int, default=3, help="timed rounds (default 3)")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    args = parser.parse_args()
    target = args.target or fetch_target()
    files = tuple(args.prompts or [Path(str(importlib.resources.files("eagle3_serving"))) / "demo_prompts.jsonl"])
    drafter = args.out / "drafter"
    if not (drafter / "config.json").exists():
        prompts = [prompt.turns[0] for prompt in read_prompts(files)]
        overfit(target, prompts, args.out, args.max_tokens, args.rounds)
    options = EvalOptions(
        "vllm",
        target,
        drafter,
        files,
        k=args.k,
        dtype=resolve_dtype(args.dtype, target),
        max_tokens=args.max_tokens,
        repeats=args.repeats,
    )
    report = run_vllm(options)
    if args.json:
        print(json.dumps(report.to_json()))
    else:
        print_report(report, Console())
    return 1 if report.overall.identical is False else 0


if __name__ == "__main__":
    raise SystemExit(main())
