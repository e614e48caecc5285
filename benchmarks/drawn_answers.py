"""Tokens a target pass where answers are drawn, on as many prompts as a few dozen sampled runs would not reach.

    python -m benchmarks.drawn_answers --prompts EVAL... --drafter checkpoints/smollm2-135m-instruct --work runs/drawn --out ...

Plain decoding's answers at `--temperature` are drawn once and played back (`eval/replay.py`) under the same noise: the target's
own token after every row decides what of a tree is accepted, as in vLLM's trees. So any drafter is held against the same texts,
and a difference is the drafter's, or that of its proposals: by the noise of the draw (coupled), or its most probable tokens
(top). Errors: bootstrap over prompts.
"""

import argparse
import random
import statistics
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from tqdm import tqdm

import eagle3_serving.tree.sampling as law
from benchmarks.common import accepted_length, bootstrap, replayed, run_script, write_json
from benchmarks.train_data import EVAL_BATCH, answer_line
from eagle3_serving.engine import DecodeOptions, EmbeddedEngine, Generation, Sampling, Target
from eagle3_serving.engine.options import Proposing
from eagle3_serving.engine.pair import load_for
from eagle3_serving.errors import InputError
from eagle3_serving.eval.prompts import by_family, read_prompts
from eagle3_serving.eval.replay import RecordedTarget
from eagle3_serving.files import write_whole
from eagle3_serving.patches import Patches
from eagle3_serving.targets.chat import chat_ids, load_tokenizer
from eagle3_serving.targets.smollm2 import fetch_target
from eagle3_serving.train.data import Answer, read_answers
from eagle3_serving.train.mixture import Families
from eagle3_serving.train.options import TrainJob
from eagle3_serving.train.served import settings
from eagle3_serving.tree.calibrate import Calibration


def drawn(args: argparse.Namespace, directory: Path, target: Target) -> Families:
    """Answers by family, a file each in `--work`, named by what drew them."""
    answers: Families = {}
    engine, tokenizer = EmbeddedEngine(target), load_tokenizer(directory)
    asked = by_family(read_prompts(args.prompts, args.limit))
    for family, prompts in tqdm(asked.items(), unit="family", desc="drawing"):
        path = args.work / f"{family}-T{args.temperature:g}-p{args.top_p:g}-seed{args.seed}.jsonl"
        if not path.exists():
            ids = [chat_ids(tokenizer, prompt.turns[0]) for prompt in prompts]
            options = DecodeOptions(args.max_tokens, "plain", sampling=sampling(args))
            said = engine.generate_many(ids, options, EVAL_BATCH)
            lines = [
                answer_line(Answer(str(n), tuple(prompt), tuple(one.token_ids), args.temperature))
                for n, (prompt, one) in enumerate(zip(ids, said, strict=True))
            ]
            args.work.mkdir(parents=True, exist_ok=True)
            write_whole(path, "".join(lines))
        answers[family] = read_answers([path], target.max_positions)
    return answers


def sampling(args: argparse.Namespace) -> Sampling:
    """A family's answers are drawn, and played back, in one order: an answer's place is part of its noise."""
    return Sampling(args.temperature, top_p=args.top_p, seed=args.seed)


def figures(said: dict[str, list[Generation]]) -> dict[str, Any]:
    """By family and their mean, with its error over prompts."""
    families = {name: accepted_length(part) for name, part in said.items()}

    def once(dice: random.Random) -> float:
        return statistics.fmean(accepted_length(dice.choices(part, k=len(part))) for part in said.values() if part)

    mean = statistics.fmean(families.values())
    rounded = {name: round(value, 4) for name, value in families.items()}
    return {"families": rounded, "mean": round(mean, 4), "error": round(bootstrap(once), 4)}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", type=Path, help="directory of the target (default: SmolLM2-135M-Instruct)")
    parser.add_argument("--drafter", type=Path, nargs="+", required=True, help="one or more, of the same boundaries")
    parser.add_argument("--prompts", type=Path, nargs="+", required=True, help="held-out prompts, with families")
    parser.add_argument("--temperature", type=float, default=1.0, help="(default 1)")
    parser.add_argument("--top-p", type=float, default=1.0, help="nucleus (default 1: off)")
    parser.add_argument(
        "--share",
        type=float,
        nargs="+",
        default=[law.COUPLING],
        help=f"of the noise, that coupled drafts go by (default {law.COUPLING:g}, what is served)",
    )
    parser.add_argument("--limit", type=int, default=40, help="prompts of each family (default 40)")
    parser.add_argument("--max-tokens", type=int, default=64, help="tokens of an answer (default 64)")
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn (default 0)")
    parser.add_argument("--device", default="cpu", help="of target and drafters (default cpu)")
    parser.add_argument("--work", type=Path, required=True, help="where the answers are kept")
    parser.add_argument("--out", type=Path, required=True, help="the figures (JSON)")
    args = parser.parse_args(arguments)
    if args.temperature <= 0:
        raise InputError(f"--temperature {args.temperature:g}: greedy answers are `eagle3 eval`'s; give more than 0")
    directory = args.target or fetch_target()
    target = Target.load(directory, device=args.device)
    families = drawn(args, directory, target)
    drafters = [(path, load_for(target, path)) for path in args.drafter]
    everything = [answer for family in families.values() for answer in family]
    playing = RecordedTarget(target, drafters[0][1].config.aux_layers, everything)
    rows = []
    ways: list[tuple[Proposing, dict[str, float]]] = [*(("coupled", {"share": n}) for n in args.share), ("top", {})]
    patches = Patches()
    for path, drafter in drafters:
        engine = EmbeddedEngine(playing, drafter, Calibration.beside(path))
        shapes = settings(args.max_tokens, TrainJob.measure_tree).items()
        for (mode, shaped), (proposals, of_noise) in product(shapes, ways):
            options = replace(shaped, sampling=sampling(args), proposals=proposals)
            if proposals == "coupled":
                patches.attribute(law, "COUPLING", of_noise["share"])
            said: dict[str, list[Generation]] = {}
            for name, family in families.items():
                said |= replayed(engine, {name: family}, options, EVAL_BATCH)
            rows.append({"drafter": path.name, "mode": mode, "proposals": proposals, **of_noise, **figures(said)})
    patches.undo()
    about = {name: getattr(args, name) for name in ("temperature", "top_p", "limit", "max_tokens", "seed")}
    counts = {"prompts": len(everything), "tokens": sum(len(answer.response_ids) for answer in everything)}
    write_json(args.out, {"about": {**about, **counts, "tree": TrainJob.measure_tree}, "rows": rows})
    table = Table(title=f"tokens a target pass, T = {args.temperature:g}", title_justify="left")
    for heading in ("drafter", "draft", "proposals", *families, "mean", "±"):
        table.add_column(heading, justify="left" if heading in ("drafter", "draft", "proposals") else "right")
    for row in rows:
        cells = [f"{value:.2f}" for value in row["families"].values()]
        proposed = f"{row['proposals']} {row.get('share', '')}".strip()
        table.add_row(row["drafter"], row["mode"], proposed, *cells, f"{row['mean']:.3f}", f"{row['error']:.3f}")
    Console().print(table)
    return 0


if __name__ == "__main__":
    run_script(main)
