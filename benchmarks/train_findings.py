"""The findings on our own ground: what the feature constraint, fusion, training-time test and more data are worth.

    python -m benchmarks.train_findings --answers ANSWERS... --prompts EVAL --work runs/findings \\
        --out benchmarks/results/train-findings.json

Every drafter sees the same answer tokens once, in an order of its seed, and starts from the same closed form; the
target's features are made once and shared. It is then measured on greedy answers to `--prompts`, which nothing was
trained on, by the embedded engine's own drafting code against a recording (`eval/replay.py`): tokens a target pass,
chain and tree, mean of the families. The same command goes on where it was stopped; each run is a file of its own, and what
`--out` holds of the same setting is not done again.

The ablation. `paper` is fused features, 5 steps, token loss alone; each other variant changes what its name says, and one
learning rate serves all. `low-middle-top` fuses the top feature in place of the high one, which is three layers below.
`constraint` adds EAGLE-1/2's feature regression with their weights (smooth L1 on the target's
final state x 1, token loss x 0.1) and changes nothing else. `eagle-2` is their method in this decoder: one step, that constraint, the top feature
alone, and the feature itself as the state, so that a draft fed back is what it stands in for (`fc` fitted to it and
frozen; its closed form goes through the attention's values, at their rank). `objectives` are switches beyond the paper, `shape` its
successor's (EAGLE-3.1's) changes of shape, one by one and together: a norm on each feature, the post-norm state fed back. Its authors say that
fewer steps then suffice, hence a variant with 3.
The curve of data: the first 1/8, 1/4 and 1/2 of the same answers, each seen once, one draft vocabulary for all.
"""

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from tqdm import tqdm

from benchmarks.common import cores, write_json
from benchmarks.train_data import (
    CHAIN_K,
    MAX_LENGTH,
    MAX_PROMPT,
    NODES,
    SMALL_NODES,
    SPARE,
    Place,
    add_setting,
    answer_line,
    boundaries,
    check_setting,
    first_tokens,
    keeps_features,
    measure,
    prepare,
)
from benchmarks.train_findings_report import plot, print_table, summary
from eagle3_serving.checkpoint.aux_layers import default_aux_layers
from eagle3_serving.engine import Target
from eagle3_serving.errors import CheckError, Eagle3Error
from eagle3_serving.files import write_whole
from eagle3_serving.targets.smollm2 import fetch_target
from eagle3_serving.train.calibration import calibrate
from eagle3_serving.train.data import read_answers
from eagle3_serving.train.features import FeatureSource
from eagle3_serving.train.job import fit
from eagle3_serving.train.options import TrainJob, TrainOptions

TTT_STEPS = 5
TOKENS_PER_BATCH = 1024


def top(num_layers: int) -> tuple[int, ...]:
    return (num_layers,)


def low_middle_top(num_layers: int) -> tuple[int, ...]:
    return (*default_aux_layers(num_layers)[:2], num_layers)


@dataclass(frozen=True)
class Variant:
    """`share` of the data; `reads`: the boundaries whose features it sees, by the target's depth; `calibrated`: trees
    rank by a calibration fitted at the end; the rest are options of the trainer and of its job."""

    group: str
    options: dict[str, Any] = field(default_factory=dict)
    job: dict[str, Any] = field(default_factory=dict)
    reads: Callable[[int], tuple[int, ...]] = default_aux_layers
    share: float = 1.0
    calibrated: bool = False

    @property
    def cost(self) -> float:
        """Of a run, in units of the head and labels of its tokens; a step costs about as much."""
        return self.share * (1 + int(self.options.get("ttt_steps", TTT_STEPS)))


CONSTRAINED = {"feature_weight": 1.0, "token_weight": 0.1}
VARIANTS = {
    "paper": Variant("ablation"),
    "eagle-2": Variant("ablation", {**CONSTRAINED, "ttt_steps": 1, "keep_feature": True}, reads=top),
    "top": Variant("ablation", reads=top),
    "low-middle-top": Variant("ablation", reads=low_middle_top),
    "steps-1": Variant("ablation", {"ttt_steps": 1}),
    "constraint": Variant("ablation", CONSTRAINED),
    "steps-3": Variant("ablation", {"ttt_steps": 3}),
    "steps-7": Variant("ablation", {"ttt_steps": 7}),
    "data-1/8": Variant("scaling", share=1 / 8),
    "data-1/4": Variant("scaling", share=1 / 4),
    "data-1/2": Variant("scaling", share=1 / 2),
    "total-variation": Variant("objectives", {"objective": "total-variation"}),
    "acceptance": Variant("objectives", {"objective": "acceptance"}),
    "calibrated": Variant("objectives", calibrated=True),
    "fc-norm": Variant("shape", job={"fc_norm": True}),
    "post-norm": Variant("shape", job={"norm_output": True}),
    "eagle-3.1": Variant("shape", job={"preset": "eagle3.1"}),
    "eagle-3.1-steps-3": Variant("shape", {"ttt_steps": 3}, {"preset": "eagle3.1"}),
}
COMMON = "paper"  # what every group is held against, and the whole of the data
GROUPS = ("ablation", "scaling", "objectives", "shape")


def options_of(variant: Variant, seed: int, tokens: int, batch: int) -> TrainOptions:
    """Batches of `batch` rows and a short warm-up, since a run is a few hundred steps."""
    fixed: dict[str, Any] = {"ttt_steps": TTT_STEPS, **variant.options}
    return TrainOptions(
        tokens=round(tokens * variant.share),
        tokens_per_batch=batch,
        warmup=8,
        ema=0.98,
        save_every=1_000_000,
        replay=False,
        seed=seed,
        **fixed,
    )


def run_one(args: argparse.Namespace, directory: Path, name: str, seed: int) -> dict[str, Any]:
    """Train and measure one drafter; the record that `--out` gathers."""
    place, variant = Place(args.work), VARIANTS[name]
    out = place.run(name, seed)
    answers = first_tokens(read_answers([place.answers], MAX_LENGTH), round(args.tokens * SPARE * variant.share))
    write_whole(out / "answers.jsonl", "".join(map(answer_line, answers)))
    target = Target.load(directory, device=args.device)
    kept = place.features if keeps_features(args.device) else None
    aux_layers = variant.reads(target.num_layers)
    job = TrainJob(
        directory,
        out,
        answers=(out / "answers.jsonl",),
        vocabulary=(place.answers,),
        draft_vocab_size=args.draft_vocab_size,
        aux_layers=aux_layers,
        max_length=MAX_LENGTH,
        max_prompt=MAX_PROMPT,
        held_out=0,
        device=args.device,
        cache_features=kept is not None,
        features=kept,
        watched=boundaries(target),
        options=options_of(variant, seed, args.tokens, args.tokens_per_batch),
        **variant.job,
    )
    begun = time.perf_counter()
    made = fit(job, target)
    trained, drafter = time.perf_counter(), made.drafter
    if not made.complete:
        raise CheckError(f"{out}: stopped at {made.tokens} tokens; the same command goes on")
    calibration = None
    if variant.calibrated:
        # a target of its own: this one watches other boundaries
        spare = read_answers([place.calibration], MAX_LENGTH)
        calibration = calibrate(drafter, Target.load(directory, device=args.device), spare, progress=False).calibration
    source = FeatureSource(target, aux_layers, kept, watched=boundaries(target))
    figures = measure(place, target, source, drafter, args.max_tokens, calibration)
    (out / "state.pt").unlink(missing_ok=True)
    return {
        "name": name,
        "group": variant.group,
        "seed": seed,
        "tokens": made.tokens,
        "steps": made.steps,
        "share": variant.share,
        "vocabulary_coverage": made.coverage,
        "train_s": round(trained - begun, 1),
        "eval_s": round(time.perf_counter() - trained, 1),
        **figures,
    }


def plan(args: argparse.Namespace) -> list[tuple[str, int]]:
    """Every run, a whole seed before the next, so that what there is at any time can be compared."""
    only = {*args.only, COMMON}
    names = [name for name, variant in VARIANTS.items() if only & {name, variant.group}]
    return [(name, seed) for seed in range(args.seeds) for name in names]


def run_all(args: argparse.Namespace, directory: Path) -> list[dict[str, Any]]:
    """Each run in a process of its own, `--workers` at a time, each with its share of the cores."""
    place, todo = Place(args.work), []
    earlier, planned = recorded(args), plan(args)
    # what an earlier call asked for and this one does not stays in the table
    records = [run for key, run in earlier.items() if key not in planned]
    for name, seed in planned:
        kept = place.run(name, seed) / "result.json"
        if kept.exists():
            records.append(json.loads(kept.read_text(encoding="utf-8")))
        elif (name, seed) in earlier:
            records.append(earlier[name, seed])
        else:
            todo.append((name, seed))
    threads = max(1, cores() // args.workers)
    own = ["--tokens", args.tokens, "--max-tokens", args.max_tokens, "--draft-vocab-size", args.draft_vocab_size]
    own += ["--tokens-per-batch", args.tokens_per_batch, "--device", args.device]

    stopped, running = threading.Event(), list[subprocess.Popen[bytes]]()

    def child(name: str, seed: int) -> dict[str, Any]:
        out = place.run(name, seed)
        out.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "benchmarks.train_findings", "--run", name, str(seed), "--work", args.work]
        command += ["--target", directory, *own]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        with (out / "run.log").open("a", encoding="utf-8") as log:
            if stopped.is_set():
                raise CheckError("stopped")
            process = subprocess.Popen(list(map(str, command)), stdout=log, stderr=log, env=environment)
            running.append(process)
            code = process.wait()
        if code:
            raise CheckError(f"run {name} of seed {seed} ended with {code}: {out / 'run.log'} says why")
        record: dict[str, Any] = json.loads((out / "result.json").read_text(encoding="utf-8"))
        return record

    total = sum(VARIANTS[name].cost for name, _ in todo)
    with ThreadPoolExecutor(args.workers) as pool, tqdm(total=total, desc=f"{len(todo)} runs", bar_format=_BAR) as bar:
        jobs = {pool.submit(child, name, seed): name for name, seed in todo}
        try:
            for job in as_completed(jobs):
                records.append(record := job.result())
                bar.update(VARIANTS[jobs[job]].cost)
                tqdm.write(
                    f"{record['name']:16s} seed {record['seed']}: chain {record['chain']:.3f}, tree {record['tree']:.3f} "
                    f"({record['train_s']:.0f} + {record['eval_s']:.0f} s)"
                )
                report(args, records)
        except BaseException:
            stopped.set()
            for process in running:  # each saves where it is
                process.terminate()
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    return records


def about(args: argparse.Namespace) -> dict[str, Any]:
    """What every run has in common."""
    found = {name: getattr(args, name) for name in ("tokens", "draft_vocab_size", "limit", "max_tokens")}
    if args.tokens_per_batch != TOKENS_PER_BATCH:  # tables from before it could be told hold to the default
        found["tokens_per_batch"] = args.tokens_per_batch
    found |= {"chain": f"{CHAIN_K}", "tree": f"{NODES} nodes", "small_tree": f"{SMALL_NODES} nodes", "common": COMMON}
    answers = Place(args.work).answers
    return found | {"answers": sha256(answers.read_bytes()).hexdigest()[:16] if answers.exists() else None}


def recorded(args: argparse.Namespace) -> dict[tuple[str, int], dict[str, Any]]:
    """Runs that `--out` holds already, where it is of the same setting and answers: another machine's, or of a lost
    `--work`. Those of a variant that is no more are left out."""
    if not args.out.exists():
        return {}
    kept = json.loads(args.out.read_text(encoding="utf-8"))
    runs = [run for run in kept["runs"] if run["name"] in VARIANTS]
    return {(run["name"], run["seed"]): run for run in runs} if kept["about"] == about(args) else {}


def report(args: argparse.Namespace, records: list[dict[str, Any]]) -> None:
    """Write `--out` and its plot."""
    order = list(VARIANTS)
    records = sorted(records, key=lambda record: (record["seed"], order.index(record["name"])))
    write_json(args.out, {"about": about(args), "summary": summary(records, COMMON), "runs": records})
    plot(records, COMMON, args.out.with_suffix(".png"))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_setting(parser)
    parser.add_argument("--seeds", type=int, default=3, help="runs of each variant (default 3)")
    parser.add_argument(
        "--only",
        nargs="+",
        choices=[*GROUPS, *VARIANTS],
        metavar="GROUP",
        default=list(GROUPS[:2]),
        help=f"groups or variants, `{COMMON}` always among them: {', '.join([*GROUPS, *VARIANTS])} (default: ablation scaling)",
    )
    parser.add_argument(
        "--workers", type=int, default=min(4, cores()), help="runs at once (default: the cores, 4 at most)"
    )
    parser.add_argument(
        "--tokens-per-batch", type=int, default=TOKENS_PER_BATCH, help=f"rows of a batch (default {TOKENS_PER_BATCH})"
    )
    parser.add_argument("--device", default="cpu", help="of target and drafters (default cpu)")
    parser.add_argument("--run", nargs=2, metavar=("NAME", "SEED"), help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    directory = args.target or fetch_target()
    place = Place(args.work)
    if args.run:
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
        name, seed = args.run[0], int(args.run[1])
        write_json(place.run(name, seed) / "result.json", run_one(args, directory, name, seed))
        return 0
    if not (args.answers and args.prompts and args.out):
        parser.error("--answers, --prompts and --out are needed")
    check_setting(args, place)
    prepare(args, directory, place, args.device)
    records = run_all(args, directory)
    report(args, records)
    print_table(summary(records, COMMON), Console())
    return 0


_BAR = "{desc}: {percentage:3.0f}%|{bar}| [{elapsed}, {remaining} to go]"


if __name__ == "__main__":
    try:
        raise SystemExit(main())
    except Eagle3Error as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    except KeyboardInterrupt:
        print("stopped: the same command goes on", file=sys.stderr)
        raise SystemExit(130) from None
