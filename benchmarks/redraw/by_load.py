"""Speed by requests in flight: real vLLM, real SGLang, the embedded engine, and the picture of the front page."""

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.redraw import raw
from benchmarks.redraw.catalogue import PICTURES, listed, markdown, picture, text, times
from eagle3_serving.bench.page import page
from eagle3_serving.bench.plots import frontier_png, speed_by_load, speedup_png
from eagle3_serving.bench.summary import Point, loads, modes
from eagle3_serving.plotting import Line, canvas, png

ENGINES = {"vllm": "vLLM", "sglang": "SGLang", "embedded": "the embedded engine"}
NAMES = {
    "auto": "ours, `auto`",
    "own-chain-3": "the engine's own chain of 3",
    "own-tree-5-4-8": "SGLang's own tree 5,4,8",
    "chain-3": "chain of 3",
    "tree-16": "tree of 16",
}
SERVERS = {
    "auto": "ours, auto",
    "1:4:3": "ours, tree 1,4,3",
    "3:4:6": "ours, tree 3,4,6",
    "5:4:12": "ours, tree 5,4,12",
    "own:5:4:8": "SGLang's own 5,4,8",
    "own-adaptive": "SGLang's own, adaptive",
}
Figures = Mapping[str, Mapping[Any, Mapping[str, float]]]


def _sweep_of(engine: str) -> None:
    """Pictures and page of `eagle3 bench`, as the command itself makes them."""
    command = (
        f"eagle3 bench --engine {engine} --target TARGET --drafter checkpoints/smollm2-135m-instruct --concurrency 1,2,4,8,16 "
        f"--tokens 32 --dtype fp32 --json --out benchmarks/results/sweep-{engine}.jsonl "
        f"--profile benchmarks/results/sweep-{engine}.profile.json --prompts EVAL --repeats 3 --least 5"
    )
    picture(f"sweep-{engine}.speedup.png")(lambda: speedup_png(*raw.bench(engine), 0.0))
    picture(f"sweep-{engine}.users.png")(lambda: frontier_png(*raw.bench(engine), 0.0))
    picture(f"sweep-{engine}.html")(lambda: page(*raw.bench(engine), command).encode())


def _table_of(engine: str) -> str:
    points = raw.bench(engine)[1]
    rows = [
        [
            NAMES[mode],
            *(times(at(points, mode, load).ratio, at(points, mode, load).ratio_range) for load in loads(points)),
        ]
        for mode in modes(points)[1:]
    ]
    plain = [f"{at(points, 'plain', load).tokens_per_second:.1f}" for load in loads(points)]
    return markdown(["in flight", *loads(points)], [*rows, ["plain decoding, tokens/s", *plain]])


def at(points: Sequence[Point], mode: str, load: int) -> Point:
    return next(point for point in points if (point.mode, point.concurrency) == (mode, load))


for _engine in ENGINES:
    _sweep_of(_engine)
    text(f"sweep-{_engine}")(lambda engine=_engine: _table_of(engine))  # type: ignore[misc]


@text("answer-vllm-by-load")
def vllm_answer() -> str:
    points = raw.bench("vllm")[1]
    auto = [at(points, "auto", load).ratio for load in loads(points)]
    own = [at(points, "own-chain-3", load).ratio for load in loads(points)]
    return (
        f"On two CPU cores `auto` serves {slashes(auto)} of plain vLLM's tokens a second at {slashes(loads(points), '')} requests in flight, "
        f"vLLM's own chain of 3 {slashes(own)}; every answer is plain decoding's."
    )


@text("vllm-schedule")
def vllm_schedule() -> str:
    once, again = raw.table("vllm-chain")["batches"], raw.table("vllm-chain-batch16")["batches"]
    rows = [[*(_schedule_row(batch, once[batch])), "3"] for batch in ("1", "4")] + [
        [*_schedule_row("16", again["16"]), "9"],
        [*_schedule_row("16, the first three rounds", once["16"]), "3"],
    ]
    return markdown(["in flight", "against plain vLLM", "tokens a pass", "answers identical", "rounds"], rows)


def _schedule_row(name: str, found: Mapping[str, Any]) -> list[str]:
    same = "yes" if found["identical"] else "NO"
    return [name, times(found["speedup"], found["range"]), f"{found['accepted_length']:.2f}", same]


def sglang_curves(figures: Figures, names: Mapping[str, str] = SERVERS) -> tuple[list[Line], list[int]]:
    """Curves of benchmarks.sglang_sweep's `figures`, server -> batch -> ratio, least, most, in the order of `names`, others
    behind; and the batches."""
    batches = sorted({int(batch) for by_batch in figures.values() for batch in by_batch})
    curves = []
    for name in [*(name for name in names if name in figures), *(name for name in figures if name not in names)]:
        if name == "plain":
            continue
        of = {int(batch): found for batch, found in figures[name].items()}
        found = [of[batch] for batch in batches]
        spread = any(one["least"] != one["most"] for one in found)
        low, high = ([one[side] for one in found] if spread else None for side in ("least", "most"))
        curves.append(Line(names.get(name, name), range(len(batches)), [one["ratio"] for one in found], low, high))
    return curves, batches


def sglang_png(figures: Figures) -> bytes:
    figure, axes = canvas("SGLang, SmolLM2-135M, fp32, two CPU cores")
    curves, batches = sglang_curves(figures)
    speed_by_load(axes[0], curves, batches, ours=[SERVERS["auto"]])
    return png(figure)


PICTURES["sglang-sweep.png"] = lambda: sglang_png(raw.table("sglang-sweep")["figures"])


@text("sglang-sweep")
def sglang_table() -> str:
    figures = raw.table("sglang-sweep")["figures"]
    batches = list(figures["plain"])
    rows = [
        [
            name,
            *(
                times(figures[server][b]["ratio"], (figures[server][b]["least"], figures[server][b]["most"]))
                for b in batches
            ),
        ]
        for server, name in SERVERS.items()
    ]
    plain = [f"{figures['plain'][b]['tokens_per_second']:.1f}" for b in batches]
    return markdown(["in flight", *batches], [*rows, ["plain SGLang, tokens/s", *plain]])


@text("sglang-bounds")
def sglang_bounds() -> str:
    bounds = raw.table("sglang-sweep")["bounds"]
    rows = [
        [title, *(times(found[key], found[f"{key}_spread"]) for found in bounds.values())]
        for title, key in (
            ("`auto` over plain SGLang", "to_plain"),
            ("`auto` over the best fixed tree", "to_best_fixed"),
        )
    ]
    best = ["the best fixed tree", *(found["best_fixed"].replace(":", ",") for found in bounds.values())]
    return markdown(["in flight", *bounds], [*rows, best])


@text("answer-sglang-by-load")
def sglang_answer() -> str:
    made = raw.table("sglang-sweep")
    own = [found["ratio"] for found in made["figures"]["own:5:4:8"].values()]
    bounds = made["bounds"]
    return (
        f"On two CPU cores, with the batch choosing the tree, {slashes([found['to_plain'] for found in bounds.values()])} of plain SGLang's "
        f"tokens a second at {slashes(list(bounds), '')} requests in flight, and "
        f"{slashes([found['to_best_fixed'] for found in bounds.values()])} of the best fixed tree's; SGLang's own tree 5,4,8 gives {slashes(own)}."
    )


def embedded_png(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Rows of benchmarks.embedded_sweep."""
    figure, axes = canvas("Embedded engine, SmolLM2-135M, fp32, two CPU cores")
    batches = sorted({row["batch"] for row in rows})
    curves = []
    for name in [name for name in dict.fromkeys(row["setting"] for row in rows) if name != "plain"]:
        mine = sorted((row for row in rows if row["setting"] == name), key=lambda row: row["batch"])
        low, high = zip(*(row["ratio_range"] for row in mine), strict=True)
        x = [batches.index(row["batch"]) for row in mine]
        curves.append(Line(name, x, [row["ratio"] for row in mine], low, high))
    speed_by_load(axes[0], curves, batches, ours=["auto-lookup"])
    return png(figure)


PICTURES["embedded-sweep.png"] = lambda: embedded_png(raw.table("embedded-sweep")["rows"])


@text("embedded-sweep")
def embedded_table() -> str:
    rows = raw.table("embedded-sweep")["rows"]
    names = {
        "chain-3": "chain of 3",
        "tree-60": "tree of 60",
        "auto": "`--mode auto`",
        "auto-lookup": "`--mode auto --lookup`",
    }
    batches = sorted({row["batch"] for row in rows})
    ratios = {(row["setting"], row["batch"]): (row["ratio"], row["ratio_range"]) for row in rows}
    return markdown(
        ["in flight", *batches],
        [[name, *(times(*ratios[setting, batch]) for batch in batches)] for setting, name in names.items()],
    )


@text("embedded-batch1")
def embedded_one() -> str:
    rows = raw.table("embedded-sweep-batch1")["rows"]
    return markdown(
        ["setting", "over plain decoding", "tokens a pass", "nodes a pass"],
        [
            [
                row["setting"],
                times(row["ratio"], row["ratio_range"]),
                f"{row['accepted_length']:.2f}",
                f"{row['nodes_per_pass']:.1f}",
            ]
            for row in rows
            if row["setting"] != "plain"
        ],
    )


@text("answer-embedded-by-load")
def embedded_answer() -> str:
    rows = raw.table("embedded-sweep")["rows"]
    of = {
        name: [row["ratio"] for row in rows if row["setting"] == name] for name in ("auto-lookup", "chain-3", "tree-60")
    }
    batches = sorted({row["batch"] for row in rows})
    return (
        f"`--mode auto --lookup` decodes {slashes(of['auto-lookup'])} as fast as plain decoding at {slashes(batches, '')} requests in flight, "
        f"where a fixed chain of 3 falls to {min(of['chain-3']):.2f}x and a fixed tree of 60 to {min(of['tree-60']):.2f}x; every token is the same."
    )


@text("answer-tuning")
def tuning_answer() -> str:
    off = {
        engine: [
            abs(row["prediction_off_percent"]) for row in raw.table("sweep-all")["rows"] if row["engine"] == engine
        ]
        for engine in ENGINES
    }
    wide = [f"{value:.0f}" for value in sorted(off["sglang"]) if value > 10]
    rest = max(value for value in off["sglang"] if value <= 10)
    return (
        f"Within {max(off['vllm']):.1f}% of what was then measured on vLLM and {max(off['embedded']):.1f}% on the embedded engine at all "
        f"five loads; on SGLang within {rest:.1f}% at three and {listed(wide)}% too low at 2 and 4 in flight, where `auto` mostly drafts nothing."
    )


@text("tuning")
def tuning_table() -> str:
    rows = raw.table("sweep-all")["rows"]
    made = []
    for engine, name in ENGINES.items():
        mine = [row for row in rows if row["engine"] == engine]
        made.append([f"{name}: measured", *(times(row["auto"], row["range"]) for row in mine)])
        made.append([f"{name}: foretold", *(times(row["predicted"]) for row in mine)])
        made.append([f"{name}: of the best setting", *(f"{row['of_best']:.2f}" for row in mine)])
    return markdown(["in flight", *dict.fromkeys(row["concurrency"] for row in rows)], made)


@picture("tuning.png")
def tuning_png() -> bytes:
    rows = raw.table("sweep-all")["rows"]
    figure, axes = canvas(
        "What `eagle3 tune` foretold, and what was measured", panels=3, size=(5.4, 6.6), sharex=True, sharey=True
    )
    for axis, (engine, name) in zip(axes, ENGINES.items(), strict=True):
        mine = [row for row in rows if row["engine"] == engine]
        low, high = zip(*(row["range"] for row in mine), strict=True)
        x = range(len(mine))
        curves = [
            Line("auto, measured", x, [row["auto"] for row in mine], low, high),
            Line("auto, foretold", x, [row["predicted"] for row in mine]),
        ]
        speed_by_load(axis, curves, [row["concurrency"] for row in mine], ours=["auto, measured"])
        axis.set_title(name.removeprefix("the ").removesuffix(" engine"), loc="left", fontsize=10.5)
    for axis in axes[:-1]:
        axis.set_xlabel("")
    return png(figure)


def slashes(values: Sequence[object], unit: str = "x") -> str:
    """`1.30x / 1.25x`."""
    return " / ".join(f"{value:.2f}{unit}" if isinstance(value, float) else f"{value}{unit}" for value in values)
