"""Step 6: a drafter trained here, on answers generated here, within a budget of minutes: the full run, the same with an
eighth, a quarter and a half of its tokens (the scaling curve), and switches of the trainer at a quarter (the ablations).

Every run starts anew from the same seed and sees the same batches in the same order; a smaller one ends sooner, its
learning rate with it. Accepted lengths are of the embedded engine on held-out prompts, T = 0, fp32, ranked by the
drafter's own probabilities. `bring.py` makes parts of the weights that can be carried home.
"""

import json
import random
import time
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import accepted_length
from benchmarks.gpu.answers import generate
from benchmarks.gpu.settings import Settings
from benchmarks.gpu.shapes import TINY, random_target
from benchmarks.gpu.sink import Sink, Unavailable
from eagle3_serving.engine import DecodeOptions, EmbeddedEngine
from eagle3_serving.errors import InputError
from eagle3_serving.eval.prompts import Prompt, by_family, read_prompts
from eagle3_serving.train.job import TrainJob, train
from eagle3_serving.train.options import TrainOptions

SHARES = {"answers": 0.3, "train": 0.55}  # of the budget; the rest evaluates
PARTS = {"full": 1.0, "quarter": 0.25, "eighth": 0.125, "half": 0.5}
ABLATION_PART = 0.25
LONGEST_PROMPT, LONGEST_HELD_OUT = 400, 2000  # tokens


def run(settings: Settings, sink: Sink, out: Path) -> None:
    work = out / "train"
    work.mkdir(exist_ok=True)
    target = Path(settings.target) if settings.target else _toy_target(settings, work)
    budget = settings.minutes * 60
    answers = [Path(name) for name in settings.answers]
    if settings.prompts or settings.tiny:
        answers.append(_answers(settings, sink, target, work, budget * SHARES["answers"]))
    if not answers:
        raise Unavailable("neither --prompts nor --answers was given: nothing to train on")
    job = _job(settings, target, answers)
    if sink.get("speed") is None:
        sink.add("speed", **_speed(job, work))
    speed = sink.get("speed")
    assert speed is not None
    ablations = dict(parse_ablation(text) for text in settings.ablations)
    runs: dict[str, tuple[float, dict[str, Any]]] = {"full": (1.0, {}), "quarter": (PARTS["quarter"], {})}
    runs |= {name: (ABLATION_PART, options) for name, options in ablations.items()}
    runs |= {name: (part, {}) for name, part in PARTS.items() if name not in runs}
    most = budget * SHARES["train"] * speed["tokens_per_second"]
    tokens = int(most / sum(part for part, _ in runs.values()))
    # no token is seen twice
    tokens = min(tokens, int(speed["answer_tokens"]))
    begun = time.perf_counter()
    for name, (part, options) in runs.items():
        if sink.has(f"run-{name}"):
            continue
        if time.perf_counter() - begun > budget * (1 - SHARES["answers"]):
            raise Unavailable(
                f"the budget of {settings.minutes:g} minutes is over before run {name}: the same command goes on"
            )
        one = replace_options(job, {"tokens": max(1, int(tokens * part)), **options}, work / name)
        figures = _trained(one)
        figures |= _accepted(settings, target, one.out / "drafter", 40 if name == "full" else 12)
        sink.add(f"run-{name}", part=part, options={k: str(v) for k, v in options.items()}, **figures)


# ---- what is trained on


def _toy_target(settings: Settings, work: Path) -> Path:
    if not settings.tiny:
        raise Unavailable("--target DIR is missing: a drafter is trained for a target")
    directory = work / "toy-target"
    if not (directory / "config.json").exists():
        random_target(TINY, torch.device("cpu"), torch.float32).model.save_pretrained(directory)
    return directory


def prompt_ids(settings: Settings, target: Path, prompts: list[Prompt], longest: int) -> list[tuple[str, list[int]]]:
    """Chat prompts as tokens, those of at most `longest`; bytes are the tokens of a toy without a tokenizer."""
    if settings.tiny and not (target / "tokenizer.json").exists():
        return [(p.id, [byte % TINY.vocab for byte in p.turns[0].encode()[:24]]) for p in prompts]
    from eagle3_serving.targets.chat import chat_ids, load_tokenizer

    tokenizer = load_tokenizer(target)
    # a token is seldom more than five characters: longer texts need no tokenizer to be too long
    pairs = [(p.id, chat_ids(tokenizer, p.turns[0])) for p in prompts if len(p.turns[0]) < 5 * longest]
    return [(name, ids) for name, ids in pairs if len(ids) <= longest]


def _read(settings: Settings, files: tuple[str, ...], limit: int | None) -> list[Prompt]:
    if files:
        return read_prompts(map(Path, files), limit, family="train")
    return [Prompt(str(n), f"family {n % 2}", (f"Tell me about the number {n}.",)) for n in range(limit or 64)]


def _answers(settings: Settings, sink: Sink, target: Path, work: Path, seconds: float) -> Path:
    out = work / "answers.jsonl"
    if not sink.has("answers"):
        raw = _read(settings, settings.prompts, 64 if settings.tiny else None)
        prompts = prompt_ids(settings, target, raw, LONGEST_PROMPT)
        random.Random(settings.seed).shuffle(prompts)  # files are ordered by source, and the time may end before them
        engine = EmbeddedEngine.load(target, None, settings.dtype, settings.device)
        size = (
            {"max_tokens": 16, "batch": 8, "passes": 1}
            if settings.tiny
            else {"max_tokens": 256, "batch": 512, "passes": 8}
        )
        sink.add("answers", **generate(engine, prompts, out, seconds=seconds, seed=settings.seed, **size))
    return out


# ---- the runs


def _job(settings: Settings, target: Path, answers: list[Path]) -> TrainJob:
    tiny, cuda = settings.tiny, settings.torch_device.type == "cuda"
    return TrainJob(
        target,
        Path(),
        answers=tuple(answers),
        draft_vocab_size=TINY.draft_vocab if tiny and not settings.target else settings.draft_vocab,
        held_out=4 if tiny else 200,
        device=str(settings.torch_device),
        cache_features=False,
        eval_limit=0,
        options=TrainOptions(
            tokens_per_batch=256 if tiny else 16384 if cuda else 2048,
            closed_form_batches=2 if tiny else 32,
            learning_rate=5e-4,
            replay=False,
            bf16=cuda,
            save_every=100,
            measure_every=0,  # it is measured here, at checkpoints of its own
            log_every=1 if tiny else 10,
            seed=settings.seed,
        ),
    )


def parse_ablation(text: str) -> tuple[str, dict[str, Any]]:
    """NAME:option=value,... with options of the trainer or of its job. Raises InputError."""
    name, _, rest = text.partition(":")
    known = {field.name: field for cls in (TrainJob, TrainOptions) for field in fields(cls)}
    options: dict[str, Any] = {}
    for part in filter(None, rest.split(",")):
        key, _, value = part.partition("=")
        if key not in known:
            raise InputError(f"--ablations {text!r}: the trainer has no option {key!r}")
        try:
            options[key] = json.loads(value)
        except ValueError:
            raise InputError(f"--ablations {text!r}: {value!r} is not a number, true or false") from None
        if isinstance(options[key], list):
            options[key] = tuple(options[key])
    if not name or not options:
        raise InputError(f"--ablations {text!r}: it is written NAME:option=value")
    return name, options


def replace_options(job: TrainJob, options: dict[str, Any], out: Path) -> TrainJob:
    """`job` into `out` with some options of its trainer or its own changed."""
    names = {field.name for field in fields(TrainOptions)}
    trainer = replace(job.options, **{key: value for key, value in options.items() if key in names})
    own = {key: value for key, value in options.items() if key not in names}
    return replace(job, out=out, options=trainer, **own)


def _speed(job: TrainJob, work: Path) -> dict[str, Any]:
    """Answer tokens a second of the trainer after its start, over a short run that is thrown away."""
    steps = 2 if job.options.log_every == 1 else 40
    short = replace_options(job, {"tokens": job.options.tokens_per_batch * steps // 2, "log_every": 1}, work / "speed")
    train(short)
    lines = [json.loads(line) for line in (short.out / "log.jsonl").read_text().splitlines()]
    steps_seen = [line for line in lines if "loss" in line]
    first, last = steps_seen[0], steps_seen[-1]
    tokens, seconds = last["tokens"] - first["tokens"], max(last["time"] - first["time"], 0.1)
    answers = [json.loads(line) for file in job.answers for line in file.read_text().splitlines()]
    known = sum(len(answer["response_ids"]) for answer in answers)
    return {"tokens_per_second": round(max(tokens, 1) / seconds, 1), "answer_tokens": known, "answers": len(answers)}


def _trained(job: TrainJob) -> dict[str, Any]:
    begun = time.perf_counter()
    train(job)
    last = [json.loads(line) for line in (job.out / "log.jsonl").read_text().splitlines()][-1]
    return {
        "tokens": last["tokens"],
        "steps": last["step"],
        "train_s": round(time.perf_counter() - begun, 1),
        "held_out": last["held_out"],
    }


def _accepted(settings: Settings, target: Path, drafter: Path, limit: int) -> dict[str, Any]:
    """Tokens a target pass by family, a chain of 5 and a tree of 60."""
    limit = 4 if settings.tiny else limit
    engine = EmbeddedEngine.load(target, drafter, torch.float32, settings.device)
    engine.prefill_rows = 16384
    tokens = 12 if settings.tiny else 96
    options = {
        "chain-5": DecodeOptions(tokens, "chain", k=5),
        "tree-60": DecodeOptions(tokens, "tree", nodes=60, depth=8, top_k=10),
    }
    found: dict[str, Any] = {name: {} for name in options}
    for family, prompts in by_family(_read(settings, settings.eval_prompts, limit)).items():
        ids = [ids for _, ids in prompt_ids(settings, target, prompts, LONGEST_HELD_OUT)]
        if not ids:
            continue
        for name, option in options.items():
            found[name][family] = round(accepted_length(engine.generate_many(ids, option, len(ids))), 3)
    return {"accepted_length": {name: {**f, "mean": round(sum(f.values()) / len(f), 3)} for name, f in found.items()}}


def summarise(rows: list[dict[str, Any]]) -> list[list[str]]:
    table = [["run", "answer tokens", "train s", "chain-5", "tree-60", "held-out accuracy by step"]]
    for row in rows:
        if row["key"] == "answers":
            table.append(
                [f"answers: {row['tokens_per_second']:.0f} tokens/s", str(row["tokens"]), f"{row['seconds']:.0f}"]
            )
        elif row["key"] == "speed":
            table.append([f"trainer: {row['tokens_per_second']:.0f} tokens/s", str(row["answer_tokens"])])
        else:
            means = [f"{row['accepted_length'][name]['mean']:.2f}" for name in ("chain-5", "tree-60")]
            accuracy = " ".join(f"{value:.3f}" for value in row["held_out"].get("accuracy", []))
            table.append(
                [row["key"].removeprefix("run-"), str(row["tokens"]), f"{row['train_s']:.0f}", *means, accuracy]
            )
    return table
