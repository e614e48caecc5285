"""What adapting a drafter to a domain was worth there, and what it cost elsewhere.

    eagle3 train --target TARGET --init BEFORE --answers math-steps.jsonl --general GENERAL... --out runs/domain
    python -m benchmarks.train_domain --before BEFORE --after runs/domain/drafter --own math-steps \\
        --prompts math-steps.jsonl EVAL --work runs/domain-eval --out benchmarks/results/train-domain.json

The target's greedy answers to `--prompts`, which neither drafter was trained on, are recorded once and replayed with both, each
with the calibration beside it, as chain of 5 and tree of 60. A family's figure is tokens a target pass; the standard error of a
difference is that over prompts, both drafters on the same ones (bootstrap). `--after` may name several, runs of the same
command with other seeds: then their mean stands, and each one's change beside it.
"""

import argparse
import json
import random
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.common import accepted_length, bootstrap, replayed, run_script, write_json
from benchmarks.train_data import EVAL_BATCH, answer_line
from eagle3_serving.engine import EmbeddedEngine, Generation, Target
from eagle3_serving.engine.pair import load_for
from eagle3_serving.eval.prompts import by_family, read_prompts
from eagle3_serving.eval.replay import RecordedTarget
from eagle3_serving.files import write_whole
from eagle3_serving.targets.chat import chat_ids, load_tokenizer
from eagle3_serving.targets.smollm2 import fetch_target
from eagle3_serving.train.data import read_answers
from eagle3_serving.train.mixture import Families
from eagle3_serving.train.options import TrainJob
from eagle3_serving.train.replies import greedy_answers
from eagle3_serving.train.served import settings
from eagle3_serving.tree.calibrate import Calibration


def recorded(args: argparse.Namespace, directory: Path, target: Target) -> Families:
    """Greedy answers by family, a file each in `--work`."""
    answers: Families = {}
    for name, prompts in by_family(read_prompts(args.prompts, args.limit)).items():
        path = args.work / f"{name}.jsonl"
        if not path.exists():
            tokenizer = load_tokenizer(directory)
            ids = [chat_ids(tokenizer, prompt.turns[0]) for prompt in prompts]
            said = greedy_answers(EmbeddedEngine(target), ids, args.max_tokens, EVAL_BATCH)
            write_whole(path, "".join(map(answer_line, said)))
        answers[name] = read_answers([path], target.max_positions)
    return answers


def row(before: Sequence[Generation], after: Sequence[Sequence[Generation]]) -> dict[str, Any]:
    """One family in one mode; `after` holds a list of answers a seed."""

    def once(dice: random.Random) -> float:
        chosen = dice.choices(range(len(before)), k=len(before))
        drawn = [accepted_length([one[n] for n in chosen]) for one in after]
        return statistics.mean(drawn) - accepted_length([before[n] for n in chosen])

    lengths = [accepted_length(one) for one in after]
    found = {"before": accepted_length(before), "after": statistics.mean(lengths)}
    changes = [round(length - found["before"], 4) for length in lengths]
    found |= {"change": found["after"] - found["before"], "error": bootstrap(once)}
    return {**{name: round(value, 4) for name, value in found.items()}, "by_seed": changes}


def compare(args: argparse.Namespace, directory: Path) -> dict[str, dict[str, dict[str, Any]]]:
    """By mode and family."""
    target = Target.load(directory, device=args.device)
    drafters = [(path, load_for(target, path)) for path in (args.before, *args.after)]
    families = recorded(args, directory, Target.load(directory, device=args.device))
    everything = [answer for family in families.values() for answer in family]
    replaying = RecordedTarget(target, drafters[0][1].config.aux_layers, everything)
    table: dict[str, dict[str, dict[str, Any]]] = {}
    for mode, options in settings(args.max_tokens, TrainJob.measure_tree).items():
        engines = [EmbeddedEngine(replaying, drafter, Calibration.beside(path)) for path, drafter in drafters]
        before, *after = [replayed(engine, families, options, EVAL_BATCH) for engine in engines]
        table[mode] = {name: row(before[name], [one[name] for one in after]) for name in families}
    return table


def means(table: dict[str, dict[str, dict[str, Any]]], own: Sequence[str]) -> dict[str, dict[str, float]]:
    """By mode: the mean change of the families trained for, and of the others."""
    found: dict[str, dict[str, float]] = {}
    for mode, families in table.items():
        parts = {"own": [f["change"] for name, f in families.items() if name in own]}
        parts["elsewhere"] = [f["change"] for name, f in families.items() if name not in own]
        found[mode] = {part: round(statistics.mean(changes), 4) for part, changes in parts.items() if changes}
    return found


def print_table(record: dict[str, Any], console: Console) -> None:
    table = Table(title="tokens a target pass", title_justify="left")
    for heading in ("", "family", "before", "after", "change", "±"):
        table.add_column(heading, justify="left" if heading in ("", "family") else "right")
    for mode, families in record["table"].items():
        for name, figures in families.items():
            mark = f"{name} (trained for)" if name in record["about"]["own"] else name
            cells = (f"{figures['before']:.3f}", f"{figures['after']:.3f}", f"{figures['change']:+.3f}")
            table.add_row(mode, mark, *cells, f"{figures['error']:.3f}")
    console.print(table)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", type=Path, help="directory of the target (default: SmolLM2-135M-Instruct)")
    parser.add_argument("--before", type=Path, required=True, help="the drafter that was gone on from")
    parser.add_argument("--after", type=Path, nargs="+", required=True, help="what came of it, a drafter a seed")
    parser.add_argument("--own", nargs="+", default=[], metavar="FAMILY", help="families that were trained for")
    parser.add_argument("--prompts", type=Path, nargs="+", required=True, help="held-out prompts, with families")
    parser.add_argument("--limit", type=int, default=8, help="prompts of each family (default 8)")
    parser.add_argument("--max-tokens", type=int, default=128, help="tokens of an answer (default 128)")
    parser.add_argument("--device", default="cpu", help="of target and drafters (default cpu)")
    parser.add_argument("--work", type=Path, required=True, help="where the target's answers are kept")
    parser.add_argument("--out", type=Path, required=True, help="the figures (JSON)")
    args = parser.parse_args(arguments)
    table = compare(args, args.target or fetch_target())
    about = {"own": args.own, "limit": args.limit, "max_tokens": args.max_tokens, "tree": TrainJob.measure_tree}
    about["seeds"] = len(args.after)
    record = {"about": about, "means": means(table, args.own), "table": table}
    write_json(args.out, record)
    print_table(record, Console())
    print(json.dumps(record["means"]))
    return 0


if __name__ == "__main__":
    run_script(main)
