"""What a load of requests came to."""

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

_STEADY = 0.1  # of the wall clock; an H100 showed 0.06 of it as 17 ms a step, where a step took 126


@dataclass
class Load:
    """`step_ms` of the steps in which all requests that were in flight decoded and none came or went. `passes` of the
    target after each request's first token, `tokens` from them; `drafted` nodes in `drafts` of them, as the engine counts."""

    answers: list[list[int]]
    seconds: float
    step_ms: list[float] = field(default_factory=list)
    tokens: int = 0
    passes: int = 0
    drafts: int = 0
    drafted: int = 0

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def figures(load: Load, in_flight: int) -> dict[str, Any]:
    """A row's figures; what the load was too short to show is None."""
    length = load.tokens / load.passes if load.passes else None
    made: dict[str, Any] = {**spread(load.step_ms), "steps": len(load.step_ms)}
    made["measured_accepted_length"] = None if length is None else round(length, 3)
    made["nodes"] = round(load.drafted / load.drafts, 2) if load.drafts else 0.0
    made["drafts"] = load.drafts
    per_second = None
    if length and made["step_ms"]:
        per_second = round(length * in_flight / made["step_ms_mean"] * 1e3, 1)
    return made | {"tokens_per_second": per_second, "wall_s": round(load.seconds, 3)}


def steady(times_ms: Sequence[float], seconds: float) -> list[float]:
    """The times, or none of them where they are under a tenth of the wall clock: requests then came, went or waited for
    room most of the time, and what is left are steps that ran ahead of the device."""
    return list(times_ms) if sum(times_ms) >= _STEADY * 1e3 * seconds else []


def spread(times_ms: Sequence[float]) -> dict[str, float | None]:
    """Median, mean, and the tenth and ninetieth of a hundred. Where an engine works ahead of what it tells, a single
    time may be short and the next one long: the mean is then the fairer of the two."""
    if not times_ms:
        return dict.fromkeys(("step_ms", "step_ms_mean", "step_ms_p10", "step_ms_p90"))
    ordered = sorted(times_ms)
    at = {name: ordered[int(share * (len(ordered) - 1))] for name, share in (("p10", 0.1), ("p90", 0.9))}
    made = {"step_ms": statistics.median(ordered), "step_ms_mean": statistics.fmean(ordered)}
    return {name: round(value, 3) for name, value in (made | {f"step_ms_{k}": v for k, v in at.items()}).items()}
