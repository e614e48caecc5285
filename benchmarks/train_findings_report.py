"""The findings' table and plot: means over seeds, their spread, and each variant against the common one seed by seed."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from eagle3_serving.files import write_whole
from eagle3_serving.plotting import OURS, PLAIN, WIDTH, canvas, colours, png

Record = dict[str, Any]
FIGURES = ("chain", "tree", "small_tree")


def summary(records: Sequence[Record], common: str) -> list[Record]:
    """A row a variant: mean and standard deviation over seeds of every figure, and of its difference to `common`.

    A deviation is None with fewer than two seeds.
    """
    by_name: dict[str, dict[int, Record]] = {}
    for record in records:
        by_name.setdefault(record["name"], {})[record["seed"]] = record
    rows = []
    for name, runs in by_name.items():
        first = next(iter(runs.values()))
        row: Record = {"name": name, "group": first["group"], "share": first["share"], "seeds": len(runs)}
        row["tokens"] = round(statistics.mean(run["tokens"] for run in runs.values()))
        for figure in FIGURES:
            row[figure] = _spread([run[figure] for run in runs.values()])
            others = by_name.get(common, {})
            paired = [run[figure] - others[seed][figure] for seed, run in runs.items() if seed in others]
            row[f"{figure}_against_{common}"] = _spread(paired) if paired and name != common else None
        rows.append(row)
    return rows


def _spread(values: Sequence[float]) -> Record:
    deviation = round(statistics.stdev(values), 4) if len(values) > 1 else None
    return {"mean": round(statistics.mean(values), 4), "deviation": deviation}


def print_table(rows: Sequence[Record], console: Console) -> None:
    table = Table(title="tokens a target pass, mean of the families (± deviation over seeds)", title_justify="left")
    for heading in ("variant", "tokens", "seeds", *(name.replace("_", " ") for name in FIGURES)):
        table.add_column(heading, justify="left" if heading == "variant" else "right")
    for row in rows:
        cells = [
            f"{row[f]['mean']:.3f}" + (f" ± {d:.3f}" if (d := row[f]["deviation"]) is not None else "") for f in FIGURES
        ]
        table.add_row(row["name"], f"{row['tokens']:,}", str(row["seeds"]), *cells)
    console.print(table)


def plot(records: Sequence[Record], common: str, out: Path) -> Path:
    write_whole(out, findings_png(records, common))
    return out


def findings_png(records: Sequence[Record], common: str) -> bytes:
    """Every variant at equal tokens and, where there is more than one point of it, the curve of data.

    Dots are seeds, bars and whiskers mean and deviation.
    """
    rows = {row["name"]: row for row in summary(records, common)}
    equal = [name for name, row in rows.items() if row["group"] != "scaling"]
    curve = sorted(
        (n for n, r in rows.items() if r["group"] == "scaling" or n == common), key=lambda n: rows[n]["tokens"]
    )
    tall = max(2.4, 1.6 + 0.36 * len(equal))
    title = "Tokens a target pass at equal answer tokens"
    if len(curve) > 1:
        figure, axes = canvas(title, panels=2, size=(WIDTH, tall + 2.6), height_ratios=(tall - 0.4, 2.6))
        _curve(axes[1], rows, curve)
    else:
        figure, axes = canvas(title, size=(WIDTH, tall))
    _bars(axes[0], records, rows, equal)
    return png(figure)


def _bars(panel: Any, records: Sequence[Record], rows: dict[str, Record], names: Sequence[str]) -> None:
    for number, kind in enumerate(_DRAWN):
        at = [place + (number - 0.5) * 0.38 for place in range(len(names))]
        means, deviations = _columns(rows, names, kind)
        look = {"color": _COLOURS[number], "hatch": ("//", "")[number], "edgecolor": "white"}
        panel.barh(at, means, 0.36, xerr=deviations, capsize=2.5, alpha=0.85, label=_TITLES[kind], **look)
        for place, name in zip(at, names, strict=True):
            seeds = [record[kind] for record in records if record["name"] == name]
            panel.scatter(seeds, [place] * len(seeds), s=9, color=PLAIN, zorder=3)
    panel.set_yticks(range(len(names)), names)
    panel.invert_yaxis()
    panel.set(xlabel="tokens a target pass (plain decoding: 1; dots: seeds)", xlim=(1.0, None))
    panel.grid(axis="y", visible=False)


def _curve(panel: Any, rows: dict[str, Record], names: Sequence[str]) -> None:
    tokens = [rows[name]["tokens"] for name in names]
    for number, kind in enumerate(_DRAWN):
        means, deviations = _columns(rows, names, kind)
        panel.errorbar(tokens, means, yerr=deviations, marker="so"[number], capsize=3, color=_COLOURS[number])
    panel.set(xlabel="answer tokens trained on (log)", ylabel="tokens a target pass", xscale="log")
    panel.set_xticks(tokens, [f"{count / 1000:.0f}K" for count in tokens])
    panel.minorticks_off()


_DRAWN = ("chain", "tree")
_TITLES = {"chain": "chain of 5", "tree": "tree of 60"}
_COLOURS = (colours(0)[0], OURS)


def _columns(rows: dict[str, Record], names: Sequence[str], kind: str) -> tuple[list[float], list[float]]:
    return [rows[name][kind]["mean"] for name in names], [rows[name][kind]["deviation"] or 0.0 for name in names]
