"""Two plots: speed over plain decoding by load, and throughput against what one user sees."""

import io
from typing import Any

from eagle3_serving.bench.record import Row
from eagle3_serving.bench.summary import Point, loads, modes
from eagle3_serving.bench.table import title


def speedup_png(head: Row, points: list[Point], temperature: float) -> bytes:
    """Ratio to plain decoding by requests in flight, with the rounds' range as a band."""
    figure, axis = _figure(head, temperature)
    mine = [point for point in points if point.temperature == temperature]
    places = {concurrency: place for place, concurrency in enumerate(loads(mine))}
    for number, mode in enumerate(modes(mine)):
        line = [point for point in mine if point.mode == mode]
        x = [places[point.concurrency] for point in line]
        axis.plot(x, [point.ratio for point in line], label=mode, **_style(mode, number))
        low, high = zip(*(point.ratio_range for point in line), strict=True)
        axis.fill_between(x, low, high, color=_style(mode, number)["color"], alpha=0.12)
    axis.set_xticks(range(len(places)), [str(concurrency) for concurrency in places])
    axis.set(xlabel="requests in flight", ylabel="tokens a second, over plain decoding")
    return _png(figure, axis)


def frontier_png(head: Row, points: list[Point], temperature: float) -> bytes:
    """Tokens a second of all requests against those of one; a point a load, more in flight to the left."""
    figure, axis = _figure(head, temperature)
    mine = [point for point in points if point.temperature == temperature and point.tokens_per_second_per_user]
    for number, mode in enumerate(modes(mine)):
        line = [point for point in mine if point.mode == mode]
        x, y = [point.tokens_per_second_per_user for point in line], [point.tokens_per_second for point in line]
        axis.plot(x, y, label=mode, **_style(mode, number))
        if mode in ("plain", "auto"):
            for point in line:
                place = (point.tokens_per_second_per_user, point.tokens_per_second)
                axis.annotate(str(point.concurrency), place, textcoords="offset points", xytext=(5, 4), fontsize=8)
    axis.set(xlabel="tokens a second, one user", ylabel="tokens a second, all users")
    return _png(figure, axis)


def _style(mode: str, number: int) -> dict[str, Any]:
    if mode == "plain":
        return {"color": "black", "linewidth": 1.0, "marker": "."}
    return {"color": f"C{number - 1}", "linewidth": 2.6 if mode == "auto" else 1.4, "marker": "o"}


def _figure(head: Row, temperature: float) -> tuple[Any, Any]:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(7.5, 4.6), layout="constrained")
    axis.set_title(title(head, temperature), fontsize=10)
    axis.grid(alpha=0.3)
    return figure, axis


def _png(figure: Any, axis: Any) -> bytes:
    import matplotlib.pyplot as plt

    axis.legend()
    axis.set_ylim(bottom=0)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    plt.close(figure)
    return buffer.getvalue()
