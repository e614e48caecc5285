"""The embedded engine with and without the drafter, family by family in one run."""

import itertools
import time
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, get_args

from tqdm import tqdm

from eagle3_serving.engine import DecodeOptions, EmbeddedEngine, Generation, Sampling
from eagle3_serving.engine.options import Proposing
from eagle3_serving.engine.profile import costs_for
from eagle3_serving.errors import InputError
from eagle3_serving.eval.counters import SpecCounters
from eagle3_serving.eval.law import Answers, Draw, hold_law
from eagle3_serving.eval.options import EvalOptions
from eagle3_serving.eval.prompts import by_family, read_prompts
from eagle3_serving.eval.report import EvalReport
from eagle3_serving.eval.rounds import Round, summarise
from eagle3_serving.targets.chat import chat_ids, load_tokenizer
from eagle3_serving.targets.dtypes import DTYPES


def run_embedded(options: EvalOptions) -> EvalReport:
    """The first turn of every prompt. Tokens a second include the prefill.

    The order alternates (plain, speculative | speculative, plain | ...), a batch of prompts at a time: a family's
    prompts are cut into groups of `batch`, so that both sides meet the same minutes. Raises InputError for a target,
    drafter or prompt file that cannot be used, LawError where sampled answers are not of the target's law.
    """
    if options.batch > 1 and options.limit is not None and options.limit < options.batch:
        raise InputError(f"--limit {options.limit} leaves fewer prompts of a family than --batch {options.batch}")
    families = by_family(read_prompts(options.prompts, options.limit))
    engine = EmbeddedEngine.load(options.target, options.drafter, DTYPES[options.dtype])
    if options.mode == "auto":
        engine.costs = costs_for(engine, options.target, options.batch, options.profile)
    tokenizer = load_tokenizer(options.target)
    plain, drafting = decode_options(options, "plain"), decode_options(options, options.mode)
    warm_up = chat_ids(tokenizer, "Name three colours.")
    for side in (plain, drafting):
        engine.generate_many([warm_up] * options.batch, side, options.batch)
    draws = [drawing(engine, tokenizer, side) for side in (plain, drafting)]
    law = hold_law(draws[0], draws[1], options.temperature)
    prompts = {name: [chat_ids(tokenizer, p.turns[0]) for p in family] for name, family in families.items()}
    rounds: dict[str, list[Round]] = {name: [] for name in families}
    total = options.repeats * sum(map(len, families.values()))
    turn = itertools.count()
    with tqdm(total=total, desc=f"{options.mode} against plain", unit="prompt") as bar:
        for _ in range(options.repeats):
            for name, ids in prompts.items():
                rounds[name].append(
                    _round(engine, groups(ids, options.batch), options.batch, plain, drafting, turn, bar)
                )
    return summarise(options, {name: len(family) for name, family in families.items()}, rounds, law)


def drawing(engine: EmbeddedEngine, tokenizer: Any, side: DecodeOptions, batch: int = 32) -> Draw:
    """Continuations of a bare text, fresh at each call."""

    def draw(text: str, draws: int, tokens: int, temperature: float) -> Answers:
        sampling = replace(side.sampling, temperature=temperature, seed=None)
        options = replace(side, max_new_tokens=tokens, eos_ids=(), sampling=sampling)
        ids: list[int] = tokenizer(text)["input_ids"]
        return [said.token_ids for said in engine.generate_many([ids] * draws, options, batch)]

    return draw


def decode_options(options: EvalOptions, mode: str) -> DecodeOptions:
    """What the engine is told; plain decoding samples as the other side does."""
    if options.proposals not in get_args(Proposing):
        raise InputError(f"--proposals {options.proposals} is not known: use {', '.join(get_args(Proposing))}")
    return DecodeOptions(
        options.max_tokens,
        mode,  # type: ignore[arg-type]
        k=options.k,
        nodes=options.nodes,
        depth=options.depth,
        top_k=options.top_k,
        sampling=Sampling(options.temperature, top_p=options.top_p, min_p=options.min_p, seed=None),
        proposals="coupled" if mode == "plain" else options.proposals,  # type: ignore[arg-type]
        lookup=options.looks_up and mode not in ("plain", "chain"),
        calibrated=options.calibrated,
    )


def groups(prompts: list[list[int]], batch: int) -> list[list[list[int]]]:
    """Cut into pieces that keep `batch` in flight: at batch 1 single prompts, else the whole family at once."""
    return [[prompt] for prompt in prompts] if batch == 1 else [prompts]


def _round(
    engine: EmbeddedEngine,
    pieces: Iterable[list[list[int]]],
    batch: int,
    plain: DecodeOptions,
    drafting: DecodeOptions,
    turn: "itertools.count[int]",
    bar: "tqdm[Any]",
) -> Round:
    result = Round()
    for piece in pieces:
        number = next(turn)
        order = (plain, drafting) if number % 2 == 0 else (drafting, plain)
        said = {id(side): _timed(engine, piece, _seeded(side, number), batch) for side in order}
        (alone, alone_s), (drafted, drafted_s) = said[id(plain)], said[id(drafting)]
        result.add([a.token_ids for a in alone], alone_s, [d.token_ids for d in drafted], drafted_s)
        for prompt, generation in zip(piece, drafted, strict=True):
            result.counters += counters(generation)
            if drafting.mode in ("chain", "tree"):  # there every pass after the prefill verifies
                result.context.place(len(prompt) + 1, generation.accepted)
        bar.update(len(piece))
        bar.set_postfix(accepted_length=f"{result.counters.accepted_length:.2f}")
    return result


def _seeded(side: DecodeOptions, seed: int) -> DecodeOptions:
    """Both sides draw by the same noise, each piece of the prompts by its own."""
    return replace(side, sampling=replace(side.sampling, seed=seed))


def _timed(
    engine: EmbeddedEngine, prompts: list[list[int]], options: DecodeOptions, batch: int
) -> tuple[list[Generation], float]:
    begun = time.perf_counter()
    said = engine.generate_many(prompts, options, batch)
    return said, time.perf_counter() - begun


def counters(generation: Generation) -> SpecCounters:
    """A pass that verified nothing counts as a draft of no tokens; the prefill's own token is not counted."""
    passes = generation.passes - 1
    return SpecCounters(
        passes, generation.nodes, len(generation.token_ids) - 1 - passes, generation.accepted_by_position
    )
