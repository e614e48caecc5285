"""Our trainer against a public one, speculators, on the same answers, features, batch size, cores and held-out answers.

    python -m benchmarks.train_public --speculators PYTHON --answers ANSWERS... --prompts EVAL --work runs/findings \\
        --out benchmarks/results/train-public.json

PYTHON: of an environment with speculators 0.9 (`pip install speculators`). Both see every answer once, read
features that stand on disk, unroll 3 steps (speculators' default) and draft over the same vocabulary; everything else is
each one's default. `eagle3-serving-compiled` is ours with `--compile`; `speculators` trains with Muon, its default,
`speculators-adamw` with AdamW. Its checkpoint is read as it stands. Seconds are those of the training with its start,
compiling and saving, on all cores, one run at a time; the passes of the target are in none of them. Ours tell a step's
seconds in the second half besides. `--work` may be that of `benchmarks.train_findings`, whose answers and features it
shares.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import save_file

from benchmarks.common import cores, run_script, write_json
from benchmarks.train_data import (
    MAX_LENGTH,
    MAX_PROMPT,
    Place,
    add_setting,
    answer_line,
    boundaries,
    check_setting,
    first_tokens,
    measure,
    prepare,
)
from eagle3_serving.checkpoint.aux_layers import default_aux_layers
from eagle3_serving.checkpoint.save import save_drafter
from eagle3_serving.engine import Target
from eagle3_serving.engine.pair import load_for
from eagle3_serving.errors import CheckError
from eagle3_serving.files import write_whole
from eagle3_serving.targets.smollm2 import fetch_target
from eagle3_serving.train.data import Answer, choose_vocabulary, read_answers
from eagle3_serving.train.features import FeatureSource
from eagle3_serving.train.job import fit
from eagle3_serving.train.options import TrainJob, TrainOptions

TTT_STEPS, ROWS = 3, 1024
OURS = {"eagle3-serving": False, "eagle3-serving-compiled": True}
THEIRS = {"speculators": (), "speculators-adamw": ("--optimizer", "adamw")}
TRAINERS = (*OURS, *THEIRS)


def counted(answers: Sequence[Answer], vocabulary: torch.Tensor) -> int:
    """Rows of a whole pass over `answers` that our loss counts."""
    kept = set(vocabulary.tolist())
    return sum(token in kept for answer in answers for token in answer.response_ids[1:])


def ours(args: argparse.Namespace, directory: Path, out: Path, name: str, seed: int) -> dict[str, Any]:
    place = Place(args.work)
    answers = read_answers([place.public / "answers.jsonl"], MAX_LENGTH)
    target = Target.load(directory)
    vocabulary, _ = choose_vocabulary(answers, target.vocab_size, args.draft_vocab_size)
    options = TrainOptions(
        tokens=counted(answers, vocabulary), tokens_per_batch=ROWS, ttt_steps=TTT_STEPS, replay=False, seed=seed,
        warmup=8, ema=0.98, save_every=1_000_000, compile=OURS[name], log_every=1,
    )  # fmt: skip
    job = TrainJob(
        directory, out, answers=(place.public / "answers.jsonl",), draft_vocab_size=args.draft_vocab_size,
        max_length=MAX_LENGTH, max_prompt=MAX_PROMPT, held_out=0, features=place.features,
        watched=boundaries(target), options=options,
    )  # fmt: skip
    begun = time.perf_counter()
    made = fit(job, target)
    save_drafter(made.drafter, out / "drafter", to=made.dialect)
    seconds = time.perf_counter() - begun
    lines = map(json.loads, (out / "log.jsonl").read_text(encoding="utf-8").splitlines())
    times = [line["time"] for line in lines if "loss" in line]
    late = times[len(times) // 2 :]
    return {"seconds": seconds, "steps": made.steps, "late_step_seconds": (late[-1] - late[0]) / max(1, len(late) - 1)}


def theirs(args: argparse.Namespace, directory: Path, out: Path, name: str, seed: int) -> dict[str, Any]:
    """Its own command line, in its own environment."""
    command: list[Any] = [
        args.speculators,
        Path(__file__).with_name("speculators_cpu.py"),
        Place(args.work).public,
        "--",
    ]
    command += ["--verifier-name-or-path", directory.resolve(), "--speculator-type", "eagle3", "--seed", seed]
    command += ["--save-path", out / "checkpoints", "--epochs", 1, "--total-seq-len", ROWS, "--ttt-steps", TTT_STEPS]
    command += ["--draft-vocab-size", args.draft_vocab_size, "--draft-attn-impl", "eager", "--train-data-ratio", 0.995]
    command += ["--on-missing", "raise", "--num-workers", 0, "--log-freq", 1_000_000, "--log-dir", out / "logs"]
    command += ["--loss-implementation", "eager"]  # the fused one is a CUDA kernel
    log = out / "speculators.log"
    ended = subprocess.run([*map(str, command), *THEIRS[name]], capture_output=True, text=True, check=False)
    write_whole(log, ended.stdout + ended.stderr)
    told = [line for line in ended.stdout.splitlines() if line.startswith('{"seconds"')]
    if ended.returncode or not told:
        raise CheckError(f"speculators ended with {ended.returncode}: {log} says why")
    (out / "drafter").unlink(missing_ok=True)
    (out / "drafter").symlink_to((out / "checkpoints" / "0").resolve())
    found: dict[str, Any] = json.loads(told[-1])
    return found


def export(place: Place, answers: Sequence[Answer], target: Target) -> None:
    """The answers and features as speculators keeps them: low, middle, high and last boundary of every token."""
    data = place.public
    if (data / "answers.jsonl").exists():
        return
    (data / "hidden_states").mkdir(parents=True, exist_ok=True)
    source = FeatureSource(target, boundaries(target), place.features)
    lines = []
    for number, answer in enumerate(answers):
        ids = [*answer.prompt_ids, *answer.response_ids]
        states = source([answer]).aux_BLF[0].unflatten(-1, (-1, target.hidden_size)).bfloat16()
        tensors = {"hidden_states": states.contiguous(), "token_ids": torch.tensor(ids)}
        save_file(tensors, data / "hidden_states" / f"hs_{number}.safetensors")
        mask = [0] * len(answer.prompt_ids) + [1] * len(answer.response_ids)
        row = json.loads(answer_line(answer)) | {"input_ids": ids, "loss_mask": mask}
        lines.append(json.dumps(row) + "\n")
    write_whole(data / "answers.jsonl", "".join(lines))


def run_one(args: argparse.Namespace, directory: Path, name: str, seed: int) -> dict[str, Any]:
    place = Place(args.work)
    out = place.public_run(name, seed)
    out.mkdir(parents=True, exist_ok=True)
    done = theirs(args, directory, out, name, seed) if name in THEIRS else ours(args, directory, out, name, seed)
    target = Target.load(directory)
    drafter = load_for(target, out / "drafter")
    source = FeatureSource(target, drafter.config.aux_layers, place.features, watched=boundaries(target))
    assert drafter.config.aux_layers == default_aux_layers(target.num_layers)
    figures = measure(place, target, source, drafter, args.max_tokens)
    tokens = sum(len(a.response_ids) for a in read_answers([place.public / "answers.jsonl"], MAX_LENGTH))
    return {
        "name": name,
        "seed": seed,
        "answer_tokens": tokens,
        **done,
        "tokens_per_second": tokens / done["seconds"],
        **figures,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_setting(parser)
    parser.add_argument("--speculators", type=Path, help="Python of an environment with speculators")
    parser.add_argument("--seeds", type=int, default=2, help="runs of each (default 2)")
    parser.add_argument(
        "--only",
        nargs="+",
        choices=TRAINERS,
        metavar="TRAINER",
        default=TRAINERS,
        help=f"to train, of {', '.join(TRAINERS)}; what `--work` holds of the others stays in the table",
    )
    parser.add_argument("--run", nargs=2, metavar=("NAME", "SEED"), help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    directory = args.target or fetch_target()
    place = Place(args.work)
    if args.run:
        name, seed = args.run[0], int(args.run[1])
        record = run_one(args, directory, name, seed)
        write_json(place.public_run(name, seed) / "result.json", record)
        return 0
    if not (args.answers and args.prompts and args.out):
        parser.error("--answers, --prompts and --out are needed")
    if not args.speculators and THEIRS.keys() & set(args.only):
        parser.error(f"--speculators is needed, or --only {' '.join(OURS)}")
    check_setting(args, place)
    prepare(args, directory, place)
    export(place, first_tokens(read_answers([place.answers], MAX_LENGTH), args.tokens), Target.load(directory))
    records = []
    for seed in range(args.seeds):  # in turn, so that both meet the same minutes
        for name in TRAINERS:
            kept = place.public_run(name, seed) / "result.json"
            if name in args.only and not kept.exists():
                own = [str(a) for a in sys.argv[1:]] if arguments is None else list(arguments)
                ended = subprocess.run(
                    [sys.executable, "-m", "benchmarks.train_public", *own, "--run", name, str(seed)],
                    check=False,
                    env={**os.environ, "OMP_NUM_THREADS": str(cores())},
                )
                if ended.returncode:
                    raise CheckError(f"{name} of seed {seed} failed; the same command goes on")
            if kept.exists():
                records.append(json.loads(kept.read_text(encoding="utf-8")))
            write_json(args.out, {"cores": cores(), "runs": records})
    show(records)
    return 0


def show(records: Sequence[dict[str, Any]]) -> None:
    table = Table(title="the same answers, once; tokens a target pass on held-out answers", title_justify="left")
    for heading in ("trainer", "seed", "tokens/s", "chain", "tree", "small tree"):
        table.add_column(heading, justify="left" if heading == "trainer" else "right")
    for r in records:
        figures = [f"{r[figure]:.3f}" for figure in ("chain", "tree", "small_tree")]
        table.add_row(r["name"], str(r["seed"]), f"{r['tokens_per_second']:.0f}", *figures)
    Console().print(table)


if __name__ == "__main__":
    run_script(main)
