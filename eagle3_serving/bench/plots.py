"""Speed over plain decoding by load, and throughput against what one user sees."""

from collections.abc import Sequence
from typing import Any

from eagle3_serving.bench.record import Row
from eagle3_serving.bench.summary import Point, loads, modes
from eagle3_serving.bench.table import title
from eagle3_serving.plotting import PLAIN, Line, canvas, line, places, plain_at_one, png

OURS = "auto"  # the setting that is drawn thick


def speed_by_load(axis: Any, curves: Sequence[Line], in_flight: Sequence[int], ours: Sequence[str] = (OURS,)) -> None:
    """Ratios to plain decoding, which is the dashed line at 1. `x` of a curve: places in `in_flight`."""
    others = [curve for curve in curves if curve.label not in ours]
    for number, curve in enumerate(curves):
        mine = curve not in others
        shift = 0.07 * (number - (len(curves) - 1) / 2)
        line(axis, curve, 0 if mine else others.index(curve), ours=mine, shift=shift)
    plain_at_one(axis)
    axis.plot([0, 0], [0.85, 1.15], alpha=0.0)  # or noise fills a plot in which nothing happens
    places(axis, in_flight)
    axis.set(xlabel="requests in flight", ylabel="tokens/s (plain = 1)")


def speedup_png(head: Row, points: list[Point], temperature: float) -> bytes:
    """Ratio to plain decoding by requests in flight, with the rounds' range as whiskers."""
    mine = [point for point in points if point.temperature == temperature]
    in_flight = loads(mine)
    curves = []
    for mode in modes(mine)[1:]:
        of = [point for point in mine if point.mode == mode]
        low, high = zip(*(point.ratio_range for point in of), strict=True)
        x = [in_flight.index(point.concurrency) for point in of]
        curves.append(Line(mode, x, [point.ratio for point in of], low, high))
    figure, axes = canvas(title(head, temperature))
    speed_by_load(axes[0], curves, in_flight)
    return png(figure)


def frontier_png(head: Row, points: list[Point], temperature: float) -> bytes:
    """Tokens a second of all requests against those of one; a point a load, more in flight to the left."""
    figure, axes = canvas(title(head, temperature))
    mine = [point for point in points if point.temperature == temperature and point.tokens_per_second_per_user]
    for number, mode in enumerate(modes(mine)):
        of = sorted((point for point in mine if point.mode == mode), key=lambda point: point.concurrency)
        x, y = [point.tokens_per_second_per_user or 0.0 for point in of], [point.tokens_per_second for point in of]
        if mode == "plain":
            axes[0].plot(x, y, label=mode, color=PLAIN, linestyle="--", marker=".", linewidth=1.2)
        else:
            line(axes[0], Line(mode, x, y), number - 1, ours=mode == OURS)
        for point in of if mode == OURS or OURS not in modes(mine) else ():
            place = (point.tokens_per_second_per_user, point.tokens_per_second)
            axes[0].annotate(str(point.concurrency), place, textcoords="offset points", xytext=(4, 7), fontsize=9)
    axes[0].set(xlabel="tokens/s of one user (numbers: requests in flight)", ylabel="tokens/s of all users")
    axes[0].set_ylim(bottom=0)
    return png(figure)
