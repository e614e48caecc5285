"""Greedy answers recorded once, for benchmarks that draft on them in many ways (`eval/replay.py`)."""

import argparse

from benchmarks.common import add_pair
from eagle3_serving.engine import EmbeddedEngine
from eagle3_serving.eval.prompts import by_family, read_prompts
from eagle3_serving.eval.replay import RecordedTarget
from eagle3_serving.targets.chat import chat_ids, load_tokenizer
from eagle3_serving.targets.smollm2 import fetch_target
from eagle3_serving.train.data import Answer
from eagle3_serving.train.replies import greedy_answers


def add_replay(parser: argparse.ArgumentParser, limit: int) -> None:
    """What is recorded, of how many prompts, and how many are drafted for at once."""
    add_pair(parser)
    parser.add_argument("--limit", type=int, default=limit, help=f"prompts of each family (default {limit})")
    parser.add_argument("--max-tokens", type=int, default=96, help="tokens an answer (default 96)")
    parser.add_argument("--batch", type=int, default=16, help="requests drafted for at once (default 16)")


def recorded(args: argparse.Namespace) -> tuple[EmbeddedEngine, RecordedTarget, dict[str, list[Answer]]]:
    """Target and drafter of `add_replay`'s arguments, greedy answers by family, and the target that plays them back."""
    directory = args.target or fetch_target()
    engine = EmbeddedEngine.load(directory, args.drafter)
    assert engine.drafter is not None
    tokenizer = load_tokenizer(directory)
    answers: dict[str, list[Answer]] = {}
    for name, prompts in by_family(read_prompts(args.prompts, args.limit)).items():
        ids = [chat_ids(tokenizer, prompt.turns[0]) for prompt in prompts]
        answers[name] = greedy_answers(EmbeddedEngine(engine.target), ids, args.max_tokens, args.batch)
    everything = [answer for family in answers.values() for answer in family]
    return engine, RecordedTarget(engine.target, engine.drafter.config.aux_layers, everything), answers
