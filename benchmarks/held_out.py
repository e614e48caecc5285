"""Tokens a pass of a drafter on the answers that its training kept out, as a chain of 5 and a tree of 60: recorded answers
are played back, so that drafting is all that is paid for. Greedy and drawn ones apart.

    python -m benchmarks.held_out --target TARGET --drafter runs/mine/drafter --answers answers.jsonl --held-out 24 --out FILE
"""

import argparse
import json
from pathlib import Path

from eagle3_serving.engine import EmbeddedEngine
from eagle3_serving.eval.replay import RecordedTarget
from eagle3_serving.files import write_whole
from eagle3_serving.train.data import Answer, read_answers
from eagle3_serving.train.mixture import Families, split
from eagle3_serving.train.served import accepted_lengths, settings

TREE = (8, 10, 60)  # depth, top-k, nodes
GRAM = 8


def repeated(answers: list[Answer]) -> float:
    """The share of runs of `GRAM` tokens that stood in their answer before: what of it goes round in circles."""
    again = total = 0
    for answer in answers:
        ids = answer.response_ids
        runs = [ids[at : at + GRAM] for at in range(len(ids) - GRAM + 1)]
        again, total = again + len(runs) - len(set(runs)), total + len(runs)
    return again / max(1, total)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("target", "drafter", "answers", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--held-out", type=int, default=60, help="as the training had it (default 60)")
    parser.add_argument("--max-length", type=int, default=640, help="as the training had it (default 640)")
    parser.add_argument("--seed", type=int, default=0, help="as the training had it (default 0)")
    args = parser.parse_args()
    families: Families = {}
    for answer in split(read_answers([args.answers], args.max_length), args.held_out, args.seed).all_held_out:
        families.setdefault(f"T = {answer.temperature or 0:g}", []).append(answer)
    everything = [answer for family in families.values() for answer in family]
    engine = EmbeddedEngine.load(args.target, args.drafter)
    assert engine.drafter is not None
    played = RecordedTarget(engine.target, engine.drafter.config.aux_layers, everything)
    longest = max(len(answer.response_ids) for answer in everything)
    drafting = EmbeddedEngine(played, engine.drafter, engine.calibration)
    lengths = accepted_lengths(drafting, families, settings(longest, TREE))
    about = {
        name: {
            "answers": len(family),
            "tokens": sum(len(answer.response_ids) for answer in family),
            "repeated": round(repeated(family), 3),
        }
        for name, family in families.items()
    }
    found = {"target": args.target.name, "tokens_a_pass": lengths, "answers": about}
    write_whole(args.out, json.dumps(found, indent=1) + "\n")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
