"""Accepted length by number of verified tokens: chain, tree ranked by the draft's probability, tree ranked by calibration.

    python -m benchmarks.calibration_table --drafter checkpoints/smollm2-135m-instruct --prompts EVAL --limit 8 \\
        --out benchmarks/results/tree-budgets.json

Greedy answers are recorded once; every setting is then drafted on them by the embedded engine's own code against the
recording (`eval/replay.py`), which costs drafting alone. The mean is over families, each family's figure over its prompts.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from benchmarks.common import add_pair, by_family_accepted, write_json
from eagle3_serving.engine import DecodeOptions, EmbeddedEngine
from eagle3_serving.eval.prompts import by_family, read_prompts
from eagle3_serving.eval.replay import RecordedTarget
from eagle3_serving.targets.chat import chat_ids, load_tokenizer
from eagle3_serving.targets.smollm2 import fetch_target
from eagle3_serving.train.data import Answer
from eagle3_serving.train.replies import greedy_answers

BUDGETS = (4, 6, 8, 16, 32, 60)


def settings(max_tokens: int, depth: int, top_k: int) -> dict[str, dict[int, DecodeOptions]]:
    def tree(nodes: int, calibrated: bool, lookup: bool = False) -> DecodeOptions:
        return DecodeOptions(
            max_tokens, "tree", nodes=nodes, depth=depth, top_k=top_k, calibrated=calibrated, lookup=lookup
        )

    return {
        "chain": {n: DecodeOptions(max_tokens, "chain", k=n) for n in BUDGETS},
        "tree": {n: tree(n, False) for n in BUDGETS},
        "tree, calibrated": {n: tree(n, True) for n in BUDGETS},
        "tree, calibrated, lookup": {n: tree(n, True, lookup=True) for n in BUDGETS},
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_pair(parser)
    parser.add_argument("--limit", type=int, default=8, help="prompts of each family (default 8)")
    parser.add_argument("--max-tokens", type=int, default=96, help="tokens an answer (default 96)")
    parser.add_argument("--batch", type=int, default=16, help="requests drafted for at once (default 16)")
    parser.add_argument("--depth", type=int, default=8)
    parser.add_argument("--top-k", type=int, default=10)
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    args = parser.parse_args(arguments)
    directory = args.target or fetch_target()
    engine = EmbeddedEngine.load(directory, args.drafter)
    assert engine.drafter is not None
    tokenizer = load_tokenizer(directory)
    answers: dict[str, list[Answer]] = {}
    for name, prompts in by_family(read_prompts(args.prompts, args.limit)).items():
        ids = [chat_ids(tokenizer, prompt.turns[0]) for prompt in prompts]
        answers[name] = greedy_answers(EmbeddedEngine(engine.target), ids, args.max_tokens, args.batch)
    everything = [answer for family in answers.values() for answer in family]
    recorded = RecordedTarget(engine.target, engine.drafter.config.aux_layers, everything)
    replay = EmbeddedEngine(recorded, engine.drafter, engine.calibration)
    plan = settings(args.max_tokens, args.depth, args.top_k)
    rows = []
    with tqdm(total=sum(map(len, plan.values())), unit="setting") as bar:
        for method, by_nodes in plan.items():
            for nodes, options in by_nodes.items():
                families = by_family_accepted(replay, answers, options, args.batch)
                mean = sum(families.values()) / len(families)
                rows.append({"method": method, "nodes": nodes, "accepted_length": mean, "families": families})
                bar.update()
    table = Table(title="tokens a target pass, mean of the families", title_justify="left")
    table.add_column("verified draft tokens")
    for method in plan:
        table.add_column(method, justify="right")
    for nodes in BUDGETS:
        table.add_row(str(nodes), *[f"{r['accepted_length']:.3f}" for r in rows if r["nodes"] == nodes])
    Console().print(table)
    if args.out:
        about = {name: getattr(args, name) for name in ("limit", "max_tokens", "depth", "top_k")} | {
            "calibrated": engine.calibration is not None
        }
        write_json(args.out, {"about": about, "rows": rows})
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
