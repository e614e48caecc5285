"""The best drafter of a run as it was served, and what watching for it costs."""

import time
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from eagle3_serving.train.served import Served

_DEAR = 0.1  # a share of the time that is worth a word


@dataclass(frozen=True)
class Best:
    """`weights` are the averaged ones at `step`, after `tokens`, in the trainer's order."""

    served: Served
    tokens: int
    step: int
    weights: list[Tensor]

    def state(self) -> dict[str, Any]:
        return {"served": self.served.state(), "tokens": self.tokens, "step": self.step, "weights": self.weights}

    @classmethod
    def of_state(cls, state: dict[str, Any]) -> "Best":
        return cls(Served.of_state(state["served"]), state["tokens"], state["step"], state["weights"])


@dataclass
class Watch:
    """When it is measured again, and the seconds that went into measuring and into the run, of all its attempts.

    `last`: the tokens seen at the last measurement, -1 before any.
    """

    last: int = -1
    measuring_s: float = 0.0
    before_s: float = 0.0  # of earlier attempts
    begun: float = field(default_factory=time.perf_counter)

    def due(self, before: int, now: int, every: int) -> bool:
        """Whether a step from `before` to `now` tokens passed a multiple of `every`; a function of the tokens alone, so that
        a resumed run measures where an undisturbed one did."""
        return every > 0 and now // every > before // every

    def note(self, tokens: int, seconds: float) -> None:
        self.last, self.measuring_s = tokens, self.measuring_s + seconds

    @property
    def share(self) -> float:
        """Of the time of the run so far that went into measuring."""
        return self.measuring_s / max(self.before_s + time.perf_counter() - self.begun, 1e-9)

    def record(self, found: Served, best: bool) -> dict[str, Any]:
        """For the log."""
        means = {mode: round(found.mean(mode), 4) for mode in found.accepted_length}
        return {**means, "families": found.accepted_length, "best": best, "share_of_time": round(self.share, 4)}

    def line(self, found: Served, best: Best, every: int) -> str:
        """For a person."""
        means = ", ".join(f"{mode} {found.mean(mode):.3f}" for mode in found.accepted_length)
        rank = "the best so far" if best.tokens == self.last else f"the best is still that at {best.tokens:,}"
        line = (
            f"as served at {self.last:,} tokens: {means} a pass ({rank}; measuring takes {self.share:.0%} of the time)"
        )
        if self.share > _DEAR and self.last > 0:
            line += f"; --measure-every {round(every * self.share / _DEAR, -3):.0f} would make it {_DEAR:.0%}"
        return line

    def state(self) -> dict[str, Any]:
        seconds = self.before_s + time.perf_counter() - self.begun
        return {"last": self.last, "measuring_s": self.measuring_s, "before_s": seconds}

    @classmethod
    def of_state(cls, state: dict[str, Any]) -> "Watch":
        return cls(**state)
