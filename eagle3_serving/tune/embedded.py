"""The embedded engine: its costs measured through its own functions, then short rounds of plain and auto under each load."""

import statistics
from pathlib import Path

from tqdm import tqdm

from eagle3_serving.bench.embedded import EmbeddedSide
from eagle3_serving.bench.load import Load, Outcome
from eagle3_serving.bench.sweep import requests_for
from eagle3_serving.engine import DecodeOptions, EmbeddedEngine
from eagle3_serving.engine.profile import measure_costs
from eagle3_serving.eval.context import ByContext
from eagle3_serving.targets.chat import load_tokenizer
from eagle3_serving.targets.dtypes import DTYPES
from eagle3_serving.tune.advice import NO_DRAFT, Advice, Tuned
from eagle3_serving.tune.options import TuneOptions


def tune_embedded(options: TuneOptions, prompts: list[str]) -> Tuned:
    """Writes the profile to `options.out`. Its expectation is a measurement: mode auto learns as it runs, and no forecast
    of ours knows that better than a short round does."""
    engine = EmbeddedEngine.load(options.target, options.drafter, DTYPES[options.dtype])
    assert engine.drafter is not None
    engine.costs = measure_costs(engine.target, engine.drafter, options.loads)
    tokenizer = load_tokenizer(options.target)
    modes = {"plain": DecodeOptions(mode="plain"), "auto": DecodeOptions(mode="auto", lookup=True)}
    sides = {name: EmbeddedSide(engine, tokenizer, decode) for name, decode in modes.items()}
    seen: dict[tuple[int, str], list[Outcome]] = {}
    with tqdm(total=2 * options.repeats * len(options.loads), desc="plain and auto", unit="load") as bar:
        for load in options.loads:  # what it has seen of drafts is what auto goes by
            sides["auto"].run(requests_for(prompts, load, options.limit), Load(load, 16))
        for _ in range(options.repeats):
            for load in options.loads:
                for name, side in sides.items():
                    asked = requests_for(prompts, load, options.limit)
                    seen.setdefault((load, name), []).append(side.run(asked, Load(load, options.tokens)))
                    bar.update()
    engine.costs.save(options.out)
    context = ByContext()
    for load in options.loads:
        for outcome in seen[load, "auto"]:
            context += outcome.context
    return Tuned([_advise(load, seen[load, "plain"], seen[load, "auto"]) for load in options.loads], context)


def _advise(load: int, plain: list[Outcome], auto: list[Outcome]) -> Advice:
    slow, fast = (statistics.median(one.tokens_per_second for one in rounds) for rounds in (plain, auto))
    counters = auto[-1].counters
    nodes = counters.draft_tokens / counters.drafts if counters.drafts else 0.0
    why = f"{slow:.1f} tokens/s plain, {fast:.1f} in mode auto, which verified drafts in {counters.drafts} requests' steps"
    return Advice(load, slow, fast, f"auto, {nodes:.1f} nodes" if nodes else NO_DRAFT, counters.accepted_length, why)


def commands(options: TuneOptions, prompts: Path) -> tuple[str, str]:
    """It has no server: its own evaluation, in mode auto and plain."""
    subject = f"--target {options.target} --drafter {options.drafter} --prompts {prompts}"
    return (
        f"eagle3 eval --engine embedded --mode auto --profile {options.out} {subject}",
        f"eagle3 eval --engine embedded --mode plain {subject}",
    )
