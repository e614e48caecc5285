"""One style for every plot, and PNG bytes.

Small figures with large type, so that a phone shows them; colours that the colour-blind tell apart (Okabe and Ito's), each with
a marker of its own; spread as whiskers; the legend under the axes, never on the data. matplotlib is imported when a plot is made.
"""

import io
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from eagle3_serving.errors import InputError

WIDTH, HEIGHT, DPI = 5.4, 4.0, 160  # inches; at a phone's 360 pixels its type is 9 pixels high
PLAIN, OURS = "#222222", "#0072B2"
OTHERS = ("#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6D31")
_HATCHES = ("//", "..", "\\\\")
MARKERS = ("s", "^", "D", "v", "P", "X")
_TYPE = {
    "font.size": 10.5,
    "axes.titlesize": 11.5,
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.alpha": 0.3,
    "legend.frameon": False,
}


@dataclass(frozen=True)
class Line:
    """A curve: `low` and `high` are its spread, None where it was measured once."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None

    @property
    def whiskers(self) -> list[list[float]] | None:
        if self.low is None or self.high is None:
            return None
        below = [max(0.0, value - least) for value, least in zip(self.y, self.low, strict=True)]
        return [below, [max(0.0, most - value) for value, most in zip(self.y, self.high, strict=True)]]


def colours(number: int) -> tuple[str, str]:
    """Colour and marker of whatever is neither plain decoding nor ours, by its place among such."""
    return OTHERS[number % len(OTHERS)], MARKERS[number % len(MARKERS)]


def canvas(
    title: str, panels: int = 1, size: tuple[float, float] = (WIDTH, HEIGHT), across: bool = False, **layout: Any
) -> tuple[Any, Any]:
    """A figure under its title, and its panels, from top to bottom or `across`. Raises InputError where matplotlib is missing."""
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError:
        raise InputError("matplotlib is missing: pip install 'eagle3-serving[bench]' or [train]") from None
    with rc_context(_TYPE):
        figure: Any = Figure(figsize=size, layout="constrained")
        # ten letters an inch of this type
        figure.suptitle(
            "\n".join(textwrap.wrap(title, int(10 * size[0]))), x=0.01, ha="left", fontweight="bold", fontsize=11.5
        )
        figure.get_layout_engine().set(w_pad=0.08, h_pad=0.06)
        rows, columns = (1, panels) if across else (panels, 1)
        axes = list(figure.subplots(rows, columns, squeeze=False, **layout).flat)
    for axis in axes:
        axis.tick_params(labelsize=10.5)
    return figure, axes


def line(axis: Any, curve: Line, number: int, ours: bool = False, shift: float = 0.0) -> None:
    """A curve with its whiskers, ours thick and in front; `shift` keeps whiskers at one x apart."""
    colour, marker = (OURS, "o") if ours else colours(number)
    width, order = (2.8, 4) if ours else (1.4, 3)
    x = [place + shift for place in curve.x]
    axis.errorbar(
        x,
        curve.y,
        yerr=curve.whiskers,
        label=curve.label,
        color=colour,
        marker=marker,
        markersize=6 if ours else 5,
        linewidth=width,
        elinewidth=1.1,
        capsize=2.5,
        zorder=order,
    )


def bars(
    axis: Any,
    values: Sequence[float],
    number: int,
    of: int,
    label: str,
    ours: bool = False,
    spread: Sequence[Sequence[float]] | None = None,
    shown: str = "",
) -> None:
    """The `number`th of `of` bars in each group, groups at 0, 1, 2, ...; `spread` below and above, `shown`: how values are written."""
    width = 0.8 / of
    at = [place + (number - (of - 1) / 2) * width for place in range(len(values))]
    colour = OURS if ours else colours(number)[0]
    look = {"color": colour, "hatch": "" if ours else _HATCHES[number % len(_HATCHES)], "edgecolor": "white"}
    drawn = axis.bar(at, values, 0.95 * width, yerr=spread, capsize=2.5, label=label, **look)
    if shown:
        axis.bar_label(drawn, fmt=shown, fontsize=9, padding=2)
    axis.grid(axis="x", visible=False)


def plain_at_one(axis: Any) -> None:
    """What everything is measured against."""
    axis.axhline(1.0, color=PLAIN, linewidth=1.2, linestyle="--", label="plain decoding")


def places(axis: Any, labels: Sequence[object]) -> None:
    """Ticks at 0, 1, 2, ... with these labels."""
    axis.set_xticks(range(len(labels)), [str(label) for label in labels])


def png(figure: Any, legend: bool = True, columns: int | None = None) -> bytes:
    """The figure as PNG, with one legend of all panels beneath them."""
    from matplotlib import rc_context

    with rc_context(_TYPE):
        if legend:
            found = {
                label: handle
                for axis in figure.axes
                for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
            }
            most = max(map(len, found), default=1)
            figure.legend(
                found.values(),
                found.keys(),
                loc="outside lower left",
                ncols=columns or max(1, min(len(found), int(figure.get_size_inches()[0] / (0.075 * most + 0.55)))),
                fontsize=10,
            )
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return buffer.getvalue()
