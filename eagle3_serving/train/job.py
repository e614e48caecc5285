"""From prompts or answers to a saved drafter: what `eagle3 train` does, step by step."""

import random
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from eagle3_serving.checkpoint.aux_layers import default_aux_layers
from eagle3_serving.checkpoint.save import dialect_for, save_drafter
from eagle3_serving.checkpoint.source import read_json
from eagle3_serving.drafter import Drafter, DrafterConfig, RopeConfig
from eagle3_serving.drafter.layers import weight_of
from eagle3_serving.engine.pair import load_for
from eagle3_serving.engine.target import Target
from eagle3_serving.errors import InputError
from eagle3_serving.eval.prompts import read_prompts
from eagle3_serving.train.answers import generate_answers
from eagle3_serving.train.card import write_card
from eagle3_serving.train.data import Answer, DataReport, choose_vocabulary, read_answers
from eagle3_serving.train.features import FeatureSource
from eagle3_serving.train.finish import Measured, calibrate_on, check_drafter, measure, prompts_to_measure
from eagle3_serving.train.options import TrainJob
from eagle3_serving.train.plot import plot_training
from eagle3_serving.train.ranks import Ranks
from eagle3_serving.train.run import Trainer


class TrainedRun(NamedTuple):
    """A drafter in memory, and what is to be told of its run. `coverage` of the data by the draft vocabulary, None where
    it was not chosen here; `complete`: all of `tokens` were seen, or it stopped by itself."""

    drafter: Drafter
    target: Target
    data: DataReport
    held_out: list[Answer]
    coverage: float | None
    tokens: int
    steps: int
    skipped: int
    complete: bool
    dialect: str
    ranks: Ranks


class TrainedDrafter(NamedTuple):
    """`right` for vLLM and SGLang by `eagle3 check`; `measured` is None where nothing was measured."""

    directory: Path
    right: bool
    measured: Measured | None


def train(job: TrainJob, command: str = "") -> TrainedDrafter:
    """Run `job`, or go on with it where a kill left it: a drafter in job.out / "drafter", checked, measured, with a card.

    `command` is told in the card. A run that was interrupted is saved and checked, and not measured.
    """
    run = fit(job)
    directory = job.out / "drafter"
    if not run.ranks.first:
        return TrainedDrafter(directory, True, None)
    save_drafter(run.drafter, directory, to=run.dialect)
    plot_training(job.out / "log.jsonl", job.out / "training.png")
    right = check_drafter(directory, job.target, lambda line: print(line, flush=True))
    measured = None
    if run.complete and job.shard_target:
        print(f"not measured, since the target is in shares: eagle3 eval --drafter {directory} does it", flush=True)
    elif run.complete:
        if job.calibrate and (rest := run.held_out[job.eval_limit :]):
            calibrate_on(run.target, directory, rest, 2 * job.eval_tokens)
        prompts = (
            prompts_to_measure(job.target, job.eval_prompts, run.held_out, job.eval_limit) if job.eval_limit else {}
        )
        measured = measure(run.target, directory, prompts, job.eval_tokens) if prompts else None
    shutil.copyfile(job.out / "training.png", directory / "training.png")
    write_card(directory, job, run, measured, command)
    return TrainedDrafter(directory, right, measured)


def fit(job: TrainJob, target: Target | None = None) -> TrainedRun:
    """The training alone, nothing saved but its state. `target`: where it is loaded already."""
    job.require_data()
    vocab_size = _require_fit(job)
    files = list(job.answers)
    ranks = Ranks.here(torch.device(job.device))
    if job.shard_target and ranks.size == 1:
        raise InputError("--shard-target shares the target among processes: start several with torchrun")
    if job.eval_prompts and job.eval_limit and ranks.first:
        prompts_to_measure(
            job.target, job.eval_prompts, (), job.eval_limit
        )  # what is wrong with them, before hours are spent
    if job.prompts:
        job.out.mkdir(parents=True, exist_ok=True)
        files.append(job.out / "answers.jsonl")
        if ranks.first:
            prompts = read_prompts(job.prompts, job.limit, family="train")
            generate_answers(job.target, prompts, files[-1], max_prompt=job.max_prompt)
        ranks.wait()
    report = DataReport()
    answers = read_answers(files, job.max_length, job.max_prompt, vocab_size, report)
    if ranks.first:
        print(report, flush=True)
    # by chance, not from the end: the files are ordered by source
    random.Random(job.options.seed + 1).shuffle(answers)
    held_out, answers = answers[: job.held_out], answers[job.held_out :]
    if not answers:
        raise InputError(
            f"only {len(held_out)} usable answers: fewer than --held-out {job.held_out} leave none to train on"
        )

    job.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(job.options.seed)
    # half the size where its products are of that precision anyway
    dtype = torch.bfloat16 if job.shard_target and job.options.bf16 else torch.float32
    target = target or Target.load(job.target, dtype, job.device, job.shard_target)
    if target.latent and (job.calibrate or (job.eval_limit and not job.shard_target)):
        target.new_pool(1, 1)  # says why it could not be measured in the end, before hours are spent
    if job.init is not None:
        drafter, coverage = load_for(target, job.init), None
    else:
        drafter, coverage = _new_drafter(job, target, answers)
    if drafter.config.num_layers != 1:
        raise InputError(f"{job.init}: a drafter of {drafter.config.num_layers} layers; only those of one are trained")
    dialect = dialect_for(drafter)  # before hours are spent on what cannot be saved
    # what one process finds in a cache another may not, and then waits for it in the target's pass
    cached = job.cache_features and not job.shard_target
    directory = (job.features or job.out / "features") if cached else None
    source = FeatureSource(target, drafter.config.aux_layers, directory, watched=job.watched, bf16=job.options.bf16)
    _state_cache(source, [*answers, *held_out], job)
    trainer = Trainer(drafter, target, answers, held_out, job.out, job.options, job.init is None, source)
    torch.set_flush_denormal(True)  # softmax tails would run many times slower
    try:
        trainer.run()
    finally:
        torch.set_flush_denormal(False)  # it holds for the whole process, which is not ours
    complete = trainer.seen_tokens >= job.options.tokens or trainer.worn_out
    counted = (trainer.seen_tokens, trainer.step, trainer.skipped)
    return TrainedRun(
        trainer.finished(), target, report, held_out, coverage, *counted, complete, dialect, trainer.ranks
    )


def _require_fit(job: TrainJob) -> int | None:
    """The target's vocabulary by its config.json. Raises InputError, before anything is loaded, where the job asks for
    what the target has not."""
    if not (job.target / "config.json").is_file():
        raise InputError(f"no config.json in the target directory {job.target}; eagle3 fetch-target makes one")
    raw = read_json(job.target / "config.json")
    text = raw.get("text_config")
    config = {**raw, **text} if isinstance(text, dict) else raw
    vocab, layers = config.get("vocab_size"), config.get("num_hidden_layers")
    if job.init is None and type(vocab) is int and job.draft_vocab_size > vocab:
        raise InputError(
            f"--draft-vocab-size is {job.draft_vocab_size}: the target has {vocab} tokens; give 1 to {vocab}"
        )
    if job.init is None and job.aux_layers is not None and type(layers) is int and max(job.aux_layers) > layers:
        raise InputError(
            f"--aux-layers {max(job.aux_layers)}: the target has {layers} layers; give boundaries of 0 to {layers}"
        )
    return vocab if type(vocab) is int else None


def _state_cache(source: FeatureSource, answers: list[Answer], job: TrainJob) -> None:
    """Say what the features will take on disk. Raises InputError where that is over the limit or what is free."""
    if source.cache.directory is None or not (needed := source.missing_bytes(answers)):
        return
    gib = needed / 2**30
    print(f"the target's features will take {gib:.2f} GiB in {source.cache.directory}", flush=True)
    free = shutil.disk_usage(source.cache.directory).free / 2**30
    for limit, what in ((job.cache_limit_gib, "more than --cache-limit-gib"), (free, "more than the disk has free:")):
        if gib > limit:
            raise InputError(
                f"the target's features would take {gib:.2f} GiB in {source.cache.directory}, {what} {limit:.2f}: "
                "give fewer answers or --no-cache-features, which computes them anew each time"
            )


def _new_drafter(job: TrainJob, target: Target, answers: list[Answer]) -> tuple[Drafter, float]:
    """One layer of the target's own shape, over the answers' most frequent tokens; the share of tokens they cover."""
    config = target.model.config
    counted = read_answers(job.vocabulary, job.max_length) if job.vocabulary else answers
    target_ids, coverage = choose_vocabulary(counted, config.vocab_size, job.draft_vocab_size)
    print(f"the draft vocabulary covers {coverage:.1%} of the answers' tokens", flush=True)
    heads = config.num_attention_heads
    drafter = Drafter(
        DrafterConfig(
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_attention_heads=heads,
            num_key_value_heads=config.num_key_value_heads,
            head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
            vocab_size=config.vocab_size,
            draft_vocab_size=job.draft_vocab_size,
            target_hidden_size=config.hidden_size,
            aux_layers=job.aux_layers or default_aux_layers(config.num_hidden_layers),
            norm_output=job.norm_output,
            sliding_window=job.sliding_window,
            rms_norm_eps=config.rms_norm_eps,
            max_position_embeddings=config.max_position_embeddings,
            hidden_act="silu",  # engines know no other in a drafter, whatever the target has
            rope=_rope(dict(config.rope_parameters or {})),
        ),
        target_ids,
    )
    for name, parameter in drafter.named_parameters():
        if parameter.dim() == 2:
            # a quiet start for what writes to the residual: the closed form is not drowned
            nn.init.normal_(parameter, std=0.002 if name.endswith(("down_proj.weight", "o_proj.weight")) else 0.02)
    weight_of(drafter.embed_tokens).data.copy_(target.embedding)
    return drafter.to(target.device), coverage


def _rope(parameters: dict[str, Any]) -> RopeConfig:
    """The target's rotary embedding, of all dimensions; that of full attention where each kind has its own."""
    parameters = dict(parameters.get("full_attention", parameters))
    parameters.pop("partial_rotary_factor", None)
    kind = parameters.pop("rope_type", "default")
    return RopeConfig(float(parameters.pop("rope_theta", 10000.0)), kind, parameters)
