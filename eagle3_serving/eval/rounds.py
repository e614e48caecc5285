"""What was counted in each timed round, and how rounds become figures."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

from eagle3_serving.eval.context import ByContext
from eagle3_serving.eval.counters import SpecCounters
from eagle3_serving.eval.law import LawTest
from eagle3_serving.eval.options import EvalOptions
from eagle3_serving.eval.report import EvalReport, Figures, Rate


@dataclass
class Round:
    """One family in one round: tokens and wall seconds of each side, and whether every answer was the same.

    `context` is counted where the engine tells of single passes.
    """

    plain_tokens: int = 0
    plain_s: float = 0.0
    tokens: int = 0
    spec_s: float = 0.0
    identical: bool = True
    counters: SpecCounters = field(default_factory=SpecCounters)
    context: ByContext = field(default_factory=ByContext)

    def add(self, plain: Sequence[Sequence[int]], plain_s: float, spec: Sequence[Sequence[int]], spec_s: float) -> None:
        """Token ids of the same prompts' answers from both sides, and the wall seconds each side took."""
        self.plain_tokens += sum(map(len, plain))
        self.tokens += sum(map(len, spec))
        self.plain_s += plain_s
        self.spec_s += spec_s
        self.identical &= all(list(a) == list(b) for a, b in zip(plain, spec, strict=True))


def summarise(
    options: EvalOptions, sizes: dict[str, int], rounds: dict[str, list[Round]], law: LawTest | None = None
) -> EvalReport:
    """`sizes`: prompts of each family. `law`: what was found of sampled answers."""
    families = {name: _figures(options, sizes[name], family) for name, family in rounds.items()}
    overall = [merge(parts) for parts in zip(*rounds.values(), strict=True)]
    return EvalReport(
        engine=options.engine,
        mode=options.mode,
        batch=options.batch,
        dtype=options.dtype,
        temperature=options.temperature,
        overall=_figures(options, sum(sizes.values()), overall),
        families=families,
        law=law,
        settings={**_shape(options), "max_tokens": options.max_tokens, "repeats": options.repeats},
    )


def merge(parts: Sequence[Round]) -> Round:
    """Their sum."""
    merged = Round(identical=all(part.identical for part in parts))
    for part in parts:
        merged.plain_tokens += part.plain_tokens
        merged.plain_s += part.plain_s
        merged.tokens += part.tokens
        merged.spec_s += part.spec_s
        merged.counters += part.counters
        merged.context += part.context
    return merged


def _figures(options: EvalOptions, prompts: int, rounds: Sequence[Round]) -> Figures:
    merged = merge(rounds)
    counters = merged.counters
    plain = [part.plain_tokens / part.plain_s for part in rounds]
    spec = [part.tokens / part.spec_s for part in rounds]
    return Figures(
        prompts=prompts,
        identical=all(part.identical for part in rounds) if options.exact else None,
        accepted_length=counters.accepted_length,
        acceptance_by_position=tuple(n / counters.drafts for n in counters.accepted_by_position)
        if counters.drafts
        else (),
        accepted_length_by_text=merged.context.lengths(),
        speedup=statistics.median(s / p for s, p in zip(spec, plain, strict=True)),
        tokens_per_second=_rate(spec),
        plain_tokens_per_second=_rate(plain),
    )


def _rate(values: Sequence[float]) -> Rate:
    return Rate(statistics.median(values), min(values), max(values))


def _shape(options: EvalOptions) -> dict[str, object]:
    if options.mode == "chain":
        return {"k": options.k}
    return {"nodes": options.nodes, "depth": options.depth, "top_k": options.top_k}
