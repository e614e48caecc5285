"""The tree's own arithmetic, beside the public code's."""

from collections.abc import Mapping

from benchmarks.redraw import raw
from benchmarks.redraw.catalogue import markdown, picture, text, times
from eagle3_serving.plotting import bars, canvas, places, png


@text("answer-tree-arithmetic")
def arithmetic_answer() -> str:
    one, many = raw.table("tree-ops-cpu")["rows"]
    return (
        f"{_ms(one['sum'])} ms for a tree of 60 at batch {one['batch']} and {_ms(many['sum'])} ms at batch {many['batch']}; on the same inputs it is "
        f"{one['ratio']['whole']['median']:.1f} and {many['ratio']['whole']['median']:.1f} times as fast as the public code."
    )


@text("tree-arithmetic")
def arithmetic() -> str:
    rows = []
    for file, name in (("tree-ops-cpu", "60 nodes, depth 8"), ("tree-ops-small-cpu", "6 nodes, depth 4")):
        for row in raw.table(file)["rows"]:
            whole = [_spread(row["ours"]["whole"]), _spread(row["theirs"]["whole"]) if row["theirs"] else "not run"]
            ratio = row["ratio"]["whole"] if row["ratio"] else None
            fast = times(ratio["median"], (ratio["p10"], ratio["p90"])) if ratio else ""
            rows.append([f"{name}, batch {row['batch']}", _spread(row["sum"]), *whole, fast])
    return markdown(["tree", "the arithmetic alone, ms", "ours, whole", "public code, whole", "times as fast"], rows)


@picture("tree-arithmetic.png")
def arithmetic_png() -> bytes:
    rows = raw.table("tree-ops-cpu")["rows"]
    figure, axes = canvas("Tree of 60: build and accept, without any model pass")
    for number, (who, name) in enumerate((("theirs", "public code (SafeAILab/EAGLE)"), ("ours", "ours"))):
        found = [{key: value / 1000 for key, value in row[who]["whole"].items()} for row in rows]
        values = [one["median"] for one in found]
        spread = [[abs(one[side] - one["median"]) for one in found] for side in ("p10", "p90")]
        bars(axes[0], values, number, 2, name, ours=who == "ours", spread=spread, shown="%.1f")
    places(axes[0], [f"batch {row['batch']}" for row in rows])
    axes[0].set(ylabel="milliseconds (log; p10 to p90)", yscale="log")
    return png(figure)


def _ms(found: Mapping[str, float]) -> str:
    return f"{found['median'] / 1000:.1f}"


def _spread(found: Mapping[str, float]) -> str:
    return f"{_ms(found)} ({found['p10'] / 1000:.1f}-{found['p90'] / 1000:.1f})"
