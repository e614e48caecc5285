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

from benchmarks.common import by_family_accepted, write_json
from benchmarks.recording import add_replay, recorded
from eagle3_serving.engine import DecodeOptions, EmbeddedEngine

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
    add_replay(parser, limit=8)
    parser.add_argument("--depth", type=int, default=8)
    parser.add_argument("--top-k", type=int, default=10)
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    args = parser.parse_args(arguments)
    engine, target, answers = recorded(args)
    replay = EmbeddedEngine(target, engine.drafter, engine.calibration)
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
