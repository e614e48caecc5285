"""A closed loop: so many requests in flight, the next one sent as one ends, until all are answered."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from eagle3_serving.eval.context import ByContext
from eagle3_serving.eval.counters import SpecCounters
from eagle3_serving.eval.law import Answers


@dataclass(frozen=True)
class Load:
    """`tokens` an answer: exactly so many, or fewer where `natural_end` lets an end token end it."""

    concurrency: int
    tokens: int
    temperature: float = 0.0
    natural_end: bool = False


@dataclass(frozen=True)
class Timed:
    """One answer. Seconds from sending the request to its first token and to its last."""

    token_ids: tuple[int, ...]
    first_token_s: float
    total_s: float

    @property
    def token_s(self) -> float | None:
        """Seconds an output token after the first; None where there is no second."""
        after = len(self.token_ids) - 1
        return (self.total_s - self.first_token_s) / after if after else None


@dataclass(frozen=True)
class Outcome:
    """All answers in the order of the prompts, the wall seconds, and what the engine counted of speculation; `context` where
    it tells of single passes."""

    answers: tuple[Timed, ...]
    seconds: float
    counters: SpecCounters = field(default_factory=SpecCounters)
    context: ByContext = field(default_factory=ByContext)

    @property
    def tokens(self) -> int:
        return sum(len(answer.token_ids) for answer in self.answers)

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds


class Side(Protocol):
    """One of the things compared, ready to answer."""

    def run(self, prompts: Sequence[str], load: Load) -> Outcome:
        """Raises CheckError where a request fails."""

    def draw(self, text: str, draws: int, tokens: int, temperature: float) -> Answers:
        """Fresh continuations of a bare text, each of exactly `tokens`."""


def percentile(values: Sequence[float], share: float) -> float:
    """Of values in any order, by linear interpolation. `values` is not empty."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def figures(outcome: Outcome) -> dict[str, object]:
    """What is written of an outcome: rates in tokens a second, times in seconds."""
    first = [answer.first_token_s for answer in outcome.answers]
    each = [answer.token_s for answer in outcome.answers if answer.token_s is not None]
    counters = outcome.counters
    return {
        "requests": len(outcome.answers),
        "tokens": outcome.tokens,
        "seconds": outcome.seconds,
        "tokens_per_second": outcome.tokens_per_second,
        "tokens_per_second_per_user": 1 / statistics.median(each) if each and statistics.median(each) > 0 else None,
        "first_token_s": {name: percentile(first, share) for name, share in PERCENTILES.items()},
        "token_s": {name: percentile(each, share) for name, share in PERCENTILES.items()} if each else None,
        "accepted_length": counters.accepted_length,
        "nodes_per_step": counters.draft_tokens / counters.drafts if counters.drafts else 0.0,
        "drafting_steps": counters.drafts,
    }


PERCENTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}
