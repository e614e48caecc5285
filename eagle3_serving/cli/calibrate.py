"""`eagle3 calibrate`: what a drafter's confidence is worth, saved beside it."""

import argparse
import json
from pathlib import Path

from eagle3_serving.cli.arguments import add_json, add_pair
from eagle3_serving.cli.parser import Parser
from eagle3_serving.errors import InputError

_EXAMPLES = """examples:
  eagle3 calibrate --target DIR --drafter checkpoints/smollm2-135m-instruct --prompts held-out.jsonl --limit 200
  eagle3 calibrate --target DIR --drafter DIR --answers greedy-answers.jsonl

Prompts must not be among those that the drafter was trained on. They are answered greedily first; an answer is a JSON
line {"id", "prompt_ids", "response_ids"}. DRAFTER gets calibration.json, which trees and mode auto then rank by.
"""


def add_parser(subparsers: "argparse._SubParsersAction[Parser]") -> None:
    parser = subparsers.add_parser(
        "calibrate",
        help="measure what a drafter's confidence is worth, for trees and mode auto",
        description=__doc__,
        epilog=_EXAMPLES,
    )
    add_pair(parser)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--prompts", type=Path, nargs="+", help="held-out prompts, answered first")
    source.add_argument("--answers", type=Path, nargs="+", help="greedy answers of the target to held-out prompts")
    parser.add_argument("--limit", type=int, help="only the first N prompts")
    parser.add_argument("--max-tokens", type=int, default=128, help="tokens an answer (default 128)")
    parser.add_argument("--batch", type=int, default=16, help="prompts answered at once (default 16)")
    add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    for name in ("limit", "max_tokens", "batch"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise InputError(f"--{name.replace('_', '-')} is {getattr(args, name)}: it must be at least 1")
    from eagle3_serving.engine import EmbeddedEngine, Target
    from eagle3_serving.engine.pair import load_for
    from eagle3_serving.eval.prompts import read_prompts
    from eagle3_serving.targets.chat import chat_ids, load_tokenizer
    from eagle3_serving.train.calibration import calibrate
    from eagle3_serving.train.data import Answer, read_answers
    from eagle3_serving.train.replies import greedy_answers
    from eagle3_serving.tree.calibrate import FILE

    target = Target.load(args.target)
    drafter = load_for(target, args.drafter)
    answers: list[Answer]
    if args.answers:
        answers = read_answers(args.answers, max_length=target.max_positions, vocab_size=target.model.config.vocab_size)
    else:
        prompts = read_prompts(args.prompts, family="held-out")[: args.limit]
        tokenizer = load_tokenizer(args.target)
        ids = [chat_ids(tokenizer, prompt.turns[0]) for prompt in prompts]
        answers = greedy_answers(EmbeddedEngine(target), ids, args.max_tokens, args.batch)
    fitted = calibrate(drafter, target, answers)
    path = args.drafter / FILE
    fitted.calibration.save(path)
    figures = {"rows": fitted.calibration.rows, "log_loss": fitted.after, "log_loss_uncalibrated": fitted.before}
    if args.json:
        print(json.dumps({"calibration": str(path), **figures}))
    else:
        print(
            f"{path}: {figures['rows']} drafted children; log-loss {fitted.before:.4f} of the draft's own "
            f"probability, {fitted.after:.4f} calibrated"
        )
    return 0
