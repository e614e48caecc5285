"""From prompts or answers to a saved drafter: what `eagle3 train` does, step by step."""

import random
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from eagle3_serving.checkpoint.aux_layers import default_aux_layers
from eagle3_serving.checkpoint.save import save_drafter
from eagle3_serving.drafter import Drafter, DrafterConfig, RopeConfig
from eagle3_serving.drafter.layers import weight_of
from eagle3_serving.engine.pair import load_for
from eagle3_serving.engine.target import Target
from eagle3_serving.errors import InputError
from eagle3_serving.eval.prompts import read_prompts
from eagle3_serving.train.answers import generate_answers
from eagle3_serving.train.data import Answer, choose_vocabulary, read_answers
from eagle3_serving.train.features import FeatureSource
from eagle3_serving.train.options import TrainOptions
from eagle3_serving.train.plot import plot_training
from eagle3_serving.train.run import Trainer


@dataclass(frozen=True)
class TrainJob:
    """`prompts` are answered by the target first; `answers` are files of answers that it gave before.

    `vocabulary`: files of answers whose tokens choose the draft vocabulary (default: those trained on). `aux_layers`:
    the boundaries that a new drafter reads (default: low, middle, high). `norm_output`: it feeds its post-norm state
    back. `cache_features` keeps the target's features on disk, which pays where its passes are the slow part (CPUs), in
    `features` (default: under `out`), which runs may share; `watched` boundaries are kept there (default: those read).
    """

    target: Path
    out: Path
    prompts: tuple[Path, ...] = ()
    answers: tuple[Path, ...] = ()
    vocabulary: tuple[Path, ...] = ()
    init: Path | None = None
    draft_vocab_size: int = 4096
    aux_layers: tuple[int, ...] | None = None
    norm_output: bool = False
    max_length: int = 640
    max_prompt: int = 400
    held_out: int = 60
    limit: int | None = None
    device: str = "cpu"
    cache_features: bool = True
    features: Path | None = None
    watched: tuple[int, ...] | None = None
    cache_limit_gib: float = 50.0
    options: TrainOptions = field(default_factory=TrainOptions)


def train(job: TrainJob) -> Path:
    """Run `job`, or go on with it where a kill left it. Returns the directory of the drafter, job.out / "drafter"."""
    drafter = fit(job)
    save_drafter(drafter, job.out / "drafter")
    plot_training(job.out / "log.jsonl", job.out / "training.png")
    return job.out / "drafter"


def fit(job: TrainJob, target: Target | None = None) -> Drafter:
    """The same, the drafter in memory alone. `target`: where it is loaded already."""
    if not (job.prompts or job.answers):
        raise InputError("nothing to train on: give --prompts, --answers or both")
    if not (job.target / "config.json").is_file():
        raise InputError(f"no config.json in the target directory {job.target}; eagle3 fetch-target makes one")
    job.out.mkdir(parents=True, exist_ok=True)
    files = list(job.answers)
    if job.prompts:
        files.append(
            generate_answers(
                job.target, read_prompts(job.prompts, job.limit, family="train"), job.out / "answers.jsonl"
            )
        )
    answers = [a for a in read_answers(files, job.max_length) if len(a.prompt_ids) <= job.max_prompt]
    # by chance, not from the end: the files are ordered by source
    random.Random(job.options.seed + 1).shuffle(answers)
    held_out, answers = answers[: job.held_out], answers[job.held_out :]
    if not answers:
        raise InputError(
            f"only {len(held_out)} usable answers: fewer than --held-out {job.held_out} leave none to train on"
        )

    torch.manual_seed(job.options.seed)
    target = target or Target.load(job.target, device=job.device)
    drafter = load_for(target, job.init) if job.init is not None else _new_drafter(job, target, answers)
    directory = (job.features or job.out / "features") if job.cache_features else None
    source = FeatureSource(target, drafter.config.aux_layers, directory, watched=job.watched, bf16=job.options.bf16)
    _state_cache(source, [*answers, *held_out], job)
    trainer = Trainer(drafter, target, answers, held_out, job.out, job.options, job.init is None, source)
    torch.set_flush_denormal(True)  # softmax tails would run many times slower
    try:
        trainer.run()
    finally:
        torch.set_flush_denormal(False)  # it holds for the whole process, which is not ours
    return trainer.finished()


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


def _new_drafter(job: TrainJob, target: Target, answers: list[Answer]) -> Drafter:
    """One layer of the target's own shape, over the answers' most frequent tokens."""
    config = target.model.config
    counted = read_answers(job.vocabulary, job.max_length) if job.vocabulary else answers
    target_ids, coverage = choose_vocabulary(counted, config.vocab_size, job.draft_vocab_size)
    tokens = sum(len(answer.response_ids) for answer in answers)
    print(f"{len(answers)} answers, {tokens} tokens; the draft vocabulary covers {coverage:.1%} of them", flush=True)
    rope = dict(config.rope_parameters)
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
            rms_norm_eps=config.rms_norm_eps,
            max_position_embeddings=config.max_position_embeddings,
            hidden_act=config.hidden_act,
            rope=RopeConfig(rope.pop("rope_theta"), rope.pop("rope_type"), rope),
        ),
        target_ids,
    )
    for name, parameter in drafter.named_parameters():
        if parameter.dim() == 2:
            # a quiet start for what writes to the residual: the closed form is not drowned
            nn.init.normal_(parameter, std=0.002 if name.endswith(("down_proj.weight", "o_proj.weight")) else 0.02)
    weight_of(drafter.embed_tokens).data.copy_(target.embedding)
    return drafter.to(target.device)
