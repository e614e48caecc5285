"""What a step costs on this machine, and how much tree pays for itself.

A step of B requests that verifies n draft nodes yields B + G(n) tokens, G(n) being the summed survival of the n likeliest
nodes, and takes T(B, B + n) seconds of target and some of drafting. The rate is highest for the n (zero included) that
maximises gain - price * seconds, where price is the best rate itself in tokens a second (Dinkelbach 1967).

Shape letters: N numbers of nodes tried, M nodes.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Curve:
    """Seconds by total rows, for each batch size measured; straight lines between, the last slope beyond."""

    points: dict[int, tuple[tuple[float, float], ...]]

    def at(self, batch: int, rows: float) -> float:
        """Seconds of a pass of `rows` rows in all over `batch` requests."""
        below = max((b for b in self.points if b <= batch), default=min(self.points))
        above = min((b for b in self.points if b >= batch), default=max(self.points))
        low = _line(self.points[below], rows)
        if above == below:
            return low
        share = (batch - below) / (above - below)
        return low + share * (_line(self.points[above], rows) - low)


def _line(points: Sequence[tuple[float, float]], rows: float) -> float:
    if len(points) == 1:
        return points[0][1] * max(1.0, rows / points[0][0])
    for place in range(1, len(points)):
        if rows <= points[place][0] or place == len(points) - 1:
            (x0, y0), (x1, y1) = points[place - 1], points[place]
            return max(y0 + (rows - x0) * (y1 - y0) / (x1 - x0), min(y0, y1) * 0.5)
    raise AssertionError("unreachable")


@dataclass(frozen=True)
class CostModel:
    """Measured seconds: `target` by rows verified, `step` of one draft step by rows, `absorb` (with all that a draft
    costs once: first expansion, selection) by rows taken in. `about` says what was measured where."""

    target: Curve
    step: Curve
    absorb: Curve
    about: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        curves = {name: getattr(self, name).points for name in ("target", "step", "absorb")}
        return {"about": self.about, **{name: {str(b): p for b, p in c.items()} for name, c in curves.items()}}

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> "CostModel":
        """Raises ValueError where it is not a profile."""
        try:
            target, step, absorb = curves = [
                Curve({int(b): tuple((float(x), float(y)) for x, y in p) for b, p in raw[name].items()})
                for name in ("target", "step", "absorb")
            ]
            about = dict(raw["about"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"not a profile of costs ({error})") from None
        values = [value for curve in curves for points in curve.points.values() for point in points for value in point]
        if not all(curve.points and all(curve.points.values()) for curve in curves):
            raise ValueError("not a profile of costs (a curve is empty)")
        if not all(math.isfinite(value) and value > 0 for value in values):
            raise ValueError("not a profile of costs (a value is not a positive number)")
        return cls(target, step, absorb, about)

    @classmethod
    def read(cls, path: Path) -> "CostModel":
        """Raises ValueError naming the file."""
        try:
            return cls.from_json(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError) as error:
            raise ValueError(f"{path}: {error}; measure it again") from None

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(f".{path.name}.partial")
        beside.write_text(json.dumps(self.to_json()) + "\n", encoding="utf-8")
        beside.replace(path)


def best_nodes(survival_M: Tensor, target: Curve, batch: int, price: float, limit: int) -> int:
    """The number of nodes whose gain exceeds their price most; 0 where none does. `survival_M`: nodes of all requests.

    `price` in tokens a second.
    """
    gain_M = survival_M.sort(descending=True).values[:limit].cumsum(0).tolist()
    # a larger pass may be the cheaper one (2 and 3 rows are, of all, the slowest for some matrix kernels)
    seconds = [target.at(batch, batch + n) for n in range(len(gain_M) + 1)]
    worth = [0.0, *[gain - price * (s - seconds[0]) for gain, s in zip(gain_M, seconds[1:], strict=True)]]
    return max(range(len(worth)), key=worth.__getitem__)


@dataclass(frozen=True)
class Forecast:
    """What a batch is expected to do: tokens a second without and with drafting, and the nodes that gives."""

    plain: float
    drafting: float
    nodes: float

    @property
    def price(self) -> float:
        """What a second is worth: the better of the two rates."""
        return max(self.plain, self.drafting)


def forecast(costs: CostModel, batch: int, survival_M: Tensor, requests: int, drafting_seconds: float) -> Forecast:
    """The best rate over numbers of nodes, had the batch the nodes that `requests` requests had lately.

    `survival_M` are those requests' nodes together, `drafting_seconds` what their draft would cost this batch.
    """
    plain = batch / costs.target.at(batch, batch)
    share = batch / requests
    gain_M = (survival_M.sort(descending=True).values.cumsum(0) * share).tolist()
    best = Forecast(plain, batch / (costs.target.at(batch, batch) + drafting_seconds), 0.0)
    for place in _grid(len(gain_M)):
        nodes = (place + 1) * share
        seconds = costs.target.at(batch, batch + nodes) + drafting_seconds
        rate = (batch + gain_M[place]) / seconds
        if rate > best.drafting:
            best = Forecast(plain, rate, nodes)
    return best


def _grid(size: int) -> list[int]:
    """Places in 0 .. size - 1, each about 5% past the last."""
    places, at = [], 0
    while at < size:
        places.append(at)
        at = max(at + 1, int(at * 1.05))
    return places
