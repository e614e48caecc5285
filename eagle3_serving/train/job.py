"""From prompts or answers to a saved drafter: what `eagle3 train` does, step by step."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from eagle3_serving.checkpoint.save import dialect_for, save_drafter
from eagle3_serving.checkpoint.source import read_json
from eagle3_serving.drafter import Drafter
from eagle3_serving.engine.pair import load_for
from eagle3_serving.engine.target import Target
from eagle3_serving.errors import InputError
from eagle3_serving.train.card import write_card
from eagle3_serving.train.comparison import Comparer, Comparison
from eagle3_serving.train.data import Answer
from eagle3_serving.train.features import Extract, FeatureBatch, FeatureSource
from eagle3_serving.train.finish import Measured, calibrate_on, check_drafter, measure, prompts_to_measure
from eagle3_serving.train.fresh import counted_for_vocabulary, new_drafter
from eagle3_serving.train.gather import family_name, gather, own_files
from eagle3_serving.train.grow import grow_vocabulary
from eagle3_serving.train.mixture import Families, Mixture
from eagle3_serving.train.options import DRAFT_VOCAB_SIZE, PARALLEL_LAYERS, TrainJob
from eagle3_serving.train.origin import require_own
from eagle3_serving.train.parallel import as_parallel, mask_token
from eagle3_serving.train.plot import plot_training
from eagle3_serving.train.ranks import Ranks
from eagle3_serving.train.run import Trainer
from eagle3_serving.train.served import PART, Recording, ServedMeasure, record
from eagle3_serving.train.streamed import FeatureServer
from eagle3_serving.train.trained import TrainedRun
from eagle3_serving.tree.calibrate import FILE


class TrainedDrafter(NamedTuple):
    """`right` for vLLM and SGLang by `eagle3 check`; `measured` is None where nothing was measured, `comparison` where there
    is no drafter that it went on from."""

    directory: Path
    right: bool
    measured: Measured | None
    comparison: Comparison | None = None


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
    only = "vllm" if run.drafter.config.parallel else None
    right = check_drafter(directory, job.target, lambda line: print(line, flush=True), only)
    if run.best is not None:  # what it was measured with
        run.best.served.calibration.save(directory / FILE)
    measured = comparison = None
    if run.complete and job.elsewhere:
        print(
            f"not measured, since the whole target is not here: eagle3 eval --drafter {directory} does it", flush=True
        )
    elif run.complete:
        rest = [answer for family in run.mixture.held_out.values() for answer in family[job.eval_limit :]]
        if job.calibrate and rest:
            calibrate_on(run.target, directory, rest, 2 * job.eval_tokens)
        held_out = run.mixture.held_out
        prompts = prompts_to_measure(job.target, job.eval_prompts, held_out, job.eval_limit) if job.eval_limit else {}
        if prompts:
            measured, answers = measure(run.target, directory, prompts, job.eval_tokens)
            comparison = _compare(job, run, directory, answers) if job.init is not None else None
    shutil.copyfile(job.out / "training.png", directory / "training.png")
    write_card(directory, job, run, measured, comparison, command)
    return TrainedDrafter(directory, right, measured, comparison)


def _compare(job: TrainJob, run: TrainedRun, directory: Path, answers: Families) -> Comparison:
    """Before and after, as each is served. A family is trained for where it bears the name of a file of answers."""
    assert job.init is not None
    aux_layers = run.drafter.config.aux_layers
    comparer = Comparer(run.target, aux_layers, answers, job.measure_tree, run.extract)
    own = _own_names(job)
    return Comparison(comparer(job.init), comparer(directory), tuple(name for name in answers if name in own))


def _own_names(job: TrainJob) -> set[str]:
    """The families that the run is for, as against those that --general names."""
    return {path.stem for path in (*job.prompts, *job.answers)} | {family_name(job)}


def fit(job: TrainJob, target: Target | None = None) -> TrainedRun:
    """The training alone, nothing saved but its state. `target`: where it is loaded already."""
    job.require_data()
    vocab_size = _require_fit(job)
    ranks = Ranks.here(torch.device(job.device))
    for sharded, what in ((job.shard_target, "target"), (job.shard_drafter, "drafter")):
        if sharded and ranks.size == 1:
            raise InputError(f"--shard-{what} shares the {what} among processes: start several with torchrun")
    if job.eval_prompts and job.eval_limit and ranks.first:
        # what is wrong with them, before hours are spent
        prompts_to_measure(job.target, job.eval_prompts, {}, job.eval_limit)
    own, mixture, report = gather(job, vocab_size, ranks)
    say: Callable[[str], None] = partial(print, flush=True) if ranks.first else _silent
    say(f"{report}" + (f"; {mixture.general} general answers are mixed in" if job.general else ""))
    if job.init is not None and not job.general:
        say("nothing general is mixed in: elsewhere it may lose what it knew (--general FILES keeps it)")
    options = job.options
    if not options.tokens:
        options = replace(options, tokens=2 * sum(len(answer.response_ids) for answer in mixture.train))

    job.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(options.seed)
    # half the size where its products are of that precision anyway
    dtype = torch.bfloat16 if job.shard_target and options.bf16 else torch.float32
    local = job.features_from is None
    target = target or Target.load(job.target, dtype, job.device, job.shard_target, layers=local)
    if target.latent and (job.calibrate or (job.eval_limit and not job.elsewhere)):
        target.new_pool(1, 1)  # says why it could not be measured in the end, before hours are spent
    drafter = (
        new_drafter(job, target, mixture.train) if job.init is None else _known_drafter(job, target, mixture.train)
    )
    coverage = _coverage(drafter, mixture.train)
    say(f"the draft vocabulary covers {coverage:.1%} of the answers' tokens")
    if job.preset == "p-eagle" and not drafter.config.parallel:
        drafter = as_parallel(drafter, mask_token(target), job.layers or PARALLEL_LAYERS, bool(job.causal_head))
    dialect = dialect_for(drafter)  # before hours are spent on what cannot be saved
    # what one process finds in a cache another may not, and then waits for it in the target's pass
    cached = job.cache_features and not job.shard_target
    directory = (job.features or job.out / "features") if cached else None
    watched = job.watched or drafter.config.aux_layers
    passes = None
    if job.features_from is not None and job.features_store is not None:
        passes = FeatureServer(job.features_from, job.features_store, target, watched)
    source = FeatureSource(
        target, drafter.config.aux_layers, directory, watched=watched, bf16=options.bf16, passes=passes
    )

    def extract(answers: Sequence[Answer]) -> FeatureBatch:
        return source(answers).to(target.device)

    held_out = mixture.all_held_out
    _state_cache(source, [*mixture.train, *held_out], job)
    if not job.shard_target:
        require_own(target, own, extract, ", ".join(path.name for path in own_files(job)))
    served = _served(replace(job, options=options), target, drafter, mixture, extract) if ranks.first else None
    trainer = Trainer(
        drafter, target, mixture.train, held_out, job.out, options, job.init is None, source, served, job.shard_drafter
    )
    torch.set_flush_denormal(True)  # softmax tails would run many times slower
    try:
        trainer.run()
    finally:
        torch.set_flush_denormal(False)  # it holds for the whole process, which is not ours
    counted = (trainer.seen_tokens, trainer.step, trainer.skipped, trainer.complete)
    made = (trainer.finished(), target, report, mixture, extract, coverage)
    recorded = served.recording.measured if served is not None else Families()
    return TrainedRun(*made, *counted, dialect, trainer.ranks, trainer.best, recorded)


def _known_drafter(job: TrainJob, target: Target, answers: list[Answer]) -> Drafter:
    """The drafter that is gone on from, its vocabulary grown where the job asks for more."""
    assert job.init is not None
    drafter = load_for(target, job.init)
    if (job.draft_vocab_size or 0) > drafter.config.draft_vocab_size:
        counted = counted_for_vocabulary(job, answers)
        drafter = grow_vocabulary(
            drafter, counted, job.draft_vocab_size or 0, target.model.get_output_embeddings().weight
        )
    return drafter


def _silent(_line: str) -> None:
    """What a rank that is not the first says."""


def _served(
    job: TrainJob, target: Target, drafter: Drafter, mixture: Mixture, extract: Extract
) -> ServedMeasure | None:
    """What measures the drafter on the way; None where nothing is to be measured, or cannot be. The prompts are none of those
    that the end is measured on, where there are enough."""
    every = job.options.measure_every
    apart = {name: family[job.eval_limit :] or family for name, family in mixture.held_out.items()}
    if not every or (job.init is None and job.options.tokens < every) or not apart or target.latent or job.elsewhere:
        return None
    path = job.out / "served.json"
    recording = Recording.read(path)
    if recording is None:
        recording = record(target, apart, max(1, every // PART), job.eval_tokens)
        if not recording.tokens:
            return None
        recording.save(path)
    own = sorted(_own_names(job)) if job.general else ()
    return ServedMeasure(target, drafter.config.aux_layers, recording, job.measure_tree, extract, own)


def _require_fit(job: TrainJob) -> int | None:
    """The target's vocabulary by its config.json. Raises InputError, before anything is loaded, where the job asks for
    what the target has not."""
    if not (job.target / "config.json").is_file():
        raise InputError(f"no config.json in the target directory {job.target}; eagle3 fetch-target makes one")
    raw = read_json(job.target / "config.json")
    text = raw.get("text_config")
    config = {**raw, **text} if isinstance(text, dict) else raw
    vocab, layers = config.get("vocab_size"), config.get("num_hidden_layers")
    if job.init is not None:
        job.asked.require_like(job.init, layers if type(layers) is int else None)
    size = job.draft_vocab_size or DRAFT_VOCAB_SIZE
    if job.init is None and type(vocab) is int and size > vocab:
        raise InputError(f"--draft-vocab-size is {size}: the target has {vocab} tokens; give 1 to {vocab}")
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


def _coverage(drafter: Drafter, answers: Sequence[Answer]) -> float:
    """The share of the answers' tokens that the drafter can propose."""
    known = set(drafter.vocabulary.target_ids.tolist())
    tokens = [token for answer in answers for token in answer.response_ids]
    return sum(token in known for token in tokens) / max(1, len(tokens))
