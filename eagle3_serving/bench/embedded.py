"""The embedded engine as sides: one engine, a set of options a setting."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from eagle3_serving.bench.load import Load, Outcome, Side, Timed
from eagle3_serving.bench.options import BenchOptions
from eagle3_serving.bench.setting import Setting
from eagle3_serving.eval.context import ByContext
from eagle3_serving.eval.counters import SpecCounters
from eagle3_serving.eval.law import Answers

if TYPE_CHECKING:
    from eagle3_serving.engine import DecodeOptions, EmbeddedEngine


class EmbeddedSide:
    """`decode` without length, sampling and end tokens, which are the load's."""

    def __init__(self, engine: "EmbeddedEngine", tokenizer: object, decode: "DecodeOptions") -> None:
        self.engine, self.tokenizer, self.decode = engine, tokenizer, decode

    def run(self, prompts: Sequence[str], load: Load) -> Outcome:
        from eagle3_serving.engine.options import Sampling
        from eagle3_serving.targets.chat import chat_ids

        options = replace(
            self.decode,
            max_new_tokens=load.tokens,
            eos_ids=None if load.natural_end else (),
            sampling=Sampling(load.temperature, seed=None),
        )
        ids = [chat_ids(self.tokenizer, prompt) for prompt in prompts]
        tokens: list[list[int]] = [[] for _ in ids]
        first_s, last_s = [0.0] * len(ids), [0.0] * len(ids)
        sent_s = [0.0] * min(load.concurrency, len(ids))  # the next request is sent as one ends
        counters, context = SpecCounters(), ByContext()
        for place, step in self.engine.serve(ids, options, load.concurrency):
            if not tokens[place]:
                first_s[place] = step.seconds
            before = len(ids[place]) + len(tokens[place])
            tokens[place].extend(step.token_ids)
            last_s[place] = step.seconds
            if step.accepted is not None:
                context.place(before, [step.accepted])
                by_position = tuple(int(at < step.accepted) for at in range(step.accepted))
                counters += SpecCounters(1, step.nodes, step.accepted, by_position)
            if step.last:
                sent_s.append(step.seconds)
        answers = tuple(
            Timed(tuple(said), first - sent, last - sent)
            for said, first, last, sent in zip(tokens, first_s, last_s, sent_s, strict=False)
        )
        return Outcome(answers, max(last_s), counters, context)

    def draw(self, text: str, draws: int, tokens: int, temperature: float) -> Answers:
        from eagle3_serving.eval.embedded import drawing

        return drawing(self.engine, self.tokenizer, self.decode)(text, draws, tokens, temperature)


@contextmanager
def open_embedded(options: BenchOptions) -> Iterator[dict[str, Side]]:
    """Raises InputError where target and drafter cannot be read or do not belong together."""
    from eagle3_serving.engine import EmbeddedEngine
    from eagle3_serving.engine.profile import costs_for
    from eagle3_serving.targets.chat import load_tokenizer
    from eagle3_serving.targets.dtypes import DTYPES

    engine = EmbeddedEngine.load(options.target, options.drafter, DTYPES[options.dtype])
    if any(setting.kind == "auto" for setting in options.chosen):
        engine.costs = costs_for(engine, options.target, max(options.concurrency), options.profile)
    tokenizer = load_tokenizer(options.target)
    yield {setting.name: EmbeddedSide(engine, tokenizer, _decode(setting)) for setting in options.chosen}


def _decode(setting: Setting) -> "DecodeOptions":
    from eagle3_serving.engine import DecodeOptions

    if setting.kind == "plain":
        return DecodeOptions(mode="plain")
    if setting.kind == "chain":
        return DecodeOptions(mode="chain", k=setting.sizes[0])
    if setting.kind == "tree":
        return DecodeOptions(mode="tree", nodes=setting.sizes[0], depth=min(8, setting.sizes[0]))
    return DecodeOptions(mode="auto", lookup=True)
