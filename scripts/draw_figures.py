"""The figures of docs/how-it-works.md but the real step, which `eagle3 show --svg` draws: `python scripts/draw_figures.py`.

Curves are of the drafter that ships and of files in benchmarks/results; the rest explains. Nothing but the standard library
and this package's colours.
"""

import json
import math
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from eagle3_serving.show.theme import VARIABLES

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "docs" / "assets" / "how"
_STYLE = """
text { font: 14px system-ui, sans-serif; fill: var(--ink); } .small { font-size: 12.5px; fill: var(--soft); } .strong { font-weight: 600; }
.mono { font-family: ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; font-size: 13px; }
.paper { fill: var(--paper); } .box { fill: var(--paper); stroke: var(--line); stroke-width: 1.3; } .dim { fill: var(--faint); stroke: none; }
.kept { fill: var(--kept-paper); stroke: var(--kept); stroke-width: 1.5; } .own { fill: var(--own-paper); stroke: var(--own); stroke-width: 1.5; }
.root { fill: var(--root); stroke: var(--root); } .on-root { fill: var(--root-ink); }
.arrow { fill: none; stroke: var(--soft); stroke-width: 1.5; marker-end: url(#head); } #head path { fill: var(--soft); }
.axis { fill: none; stroke: var(--line); } .curve { fill: none; stroke-width: 2.4; } .dash { stroke-dasharray: 6 4; }
.green { stroke: var(--kept); } .blue { stroke: var(--own); } .grey { stroke: var(--fell); } .ink { stroke: var(--ink); }
"""
_HEAD = (
    '<defs><marker id="head" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" orient="auto-start-reverse">'
    '<path d="M0 0L10 5L0 10z"/></marker></defs>'
)


def picture(title: str, width: int, height: int, shapes: Iterable[str]) -> str:
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" '
            f'aria-labelledby="title"><title id="title">{escape(title)}</title>',
            f"<style>{VARIABLES}{_STYLE}</style>{_HEAD}",
            '<rect class="paper" width="100%" height="100%" rx="8"/>',
            *shapes,
            "</svg>\n",
        ]
    )


def text(x: float, y: float, said: str, kind: str = "", anchor: str = "start") -> str:
    return f'<text x="{x:g}" y="{y:g}" class="{kind}" text-anchor="{anchor}">{escape(said)}</text>'


def box(
    x: float, y: float, width: float, height: float, said: Sequence[str], kind: str = "box", words: str = ""
) -> str:
    first = y + height / 2 + 5 - 9 * (len(said) - 1)
    lines = "".join(text(x + width / 2, first + 18 * n, line, words, "middle") for n, line in enumerate(said))
    return f'<rect class="{kind}" x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="6"/>{lines}'


def arrow(path: str) -> str:
    return f'<path class="arrow" d="{path}"/>'


def step_in_turns() -> str:
    """One step of decoding, from a pass to the next."""
    turns = (
        (
            "Draft",
            "The drafter takes in what the last pass accepted, then",
            "grows a pool of guesses, one depth at a time.",
            "box",
        ),
        (
            "Choose",
            "The guesses that are likeliest from the start are kept, as",
            "many as pay at this load: always a tree.",
            "box",
        ),
        (
            "Verify",
            "One pass of the target over the whole tree, each guess",
            "seeing only what stands before it on its own branch.",
            "own",
        ),
        (
            "Accept",
            "From the start along the target's own tokens, as long as",
            "they were guessed; then its token where the walk ends.",
            "kept",
        ),
        (
            "Move",
            "Keys and values of accepted guesses move together;",
            "those of all others are overwritten by the next pass.",
            "box",
        ),
    )
    shapes = []
    for number, (name, first, second, kind) in enumerate(turns):
        y = 22 + 74 * number
        shapes += [box(24, y, 104, 52, [name], kind, "strong"), text(150, y + 21, first), text(150, y + 41, second)]
        if number:
            shapes.append(arrow(f"M76 {y - 21}V{y - 3}"))
    bottom = 22 + 74 * 4 + 52
    shapes.append(arrow(f"M76 {bottom}V{bottom + 16}H12V48H21"))
    return picture("One step: draft, choose, verify, accept, move", 560, bottom + 30, shapes)


def features() -> str:
    """What the drafter reads, and how it drafts on without the target."""
    shapes = [text(96, 28, "target", "strong", "middle")]
    layers = 12
    for place in range(layers):
        y = 262 - 19 * place
        tapped = {1: "low", 6: "middle", 10: "high"}.get(place)
        shapes.append(f'<rect class="{"own" if tapped else "dim"}" x="36" y="{y}" width="120" height="14" rx="3"/>')
        if tapped:
            shapes += [text(164, y + 11, tapped, "small"), f'<path class="axis blue" d="M212 {y + 7}H250"/>']
    shapes += [
        text(96, 306, "tokens so far", "small", "middle"),
        arrow("M96 292V280"),
        '<path class="axis blue" d="M250 79V250"/>',
        arrow("M250 165H276"),
        box(280, 140, 84, 50, ["fusion", "(one matrix)"], "box", "small"),
        arrow("M364 165H394"),
        box(398, 126, 136, 78, ["drafter", "one decoder layer"], "kept"),
        arrow("M466 126V96"),
        box(398, 56, 136, 38, ["its own small head"], "box", "small"),
        arrow("M466 56V34"),
        text(466, 26, "guesses for the next token", "strong", "middle"),
        box(398, 246, 136, 38, ["embedding"], "box", "small"),
        arrow("M466 246V207"),
        text(466, 306, "the token that came next", "small", "middle"),
        arrow("M466 294V286"),
        arrow("M534 165H562V226H380V186H394"),
        text(570, 208, "its own output", "small"),
        text(570, 225, "stands in where the", "small"),
        text(570, 242, "target has not been", "small"),
    ]
    return picture(
        "The drafter reads low, middle and high features of the target, and then its own output", 700, 322, shapes
    )


def mask() -> str:
    """A small tree, its rows in the verify pass and what each sees."""
    names, parents = ["the", "sky", "sea", "is", "was", "looks"], [None, 0, 0, 1, 1, 2]
    places = [(24, 112), (130, 62), (130, 162), (236, 30), (236, 94), (236, 162)]
    shapes = [text(24, 22, "tree", "small"), text(384, 22, "who sees whom in the pass", "small")]
    for (x, y), parent in zip(places, parents, strict=True):
        if parent is not None:
            px, py = places[parent]
            shapes.append(
                f'<path class="axis ink" d="M{px + 72} {py + 14}C{px + 90} {py + 14} {x - 18} {y + 14} {x} {y + 14}"/>'
            )
    for number, (name, (x, y)) in enumerate(zip(names, places, strict=True)):
        kind, words = ("root", "mono on-root") if number == 0 else ("box", "mono")
        shapes.append(box(x, y, 72, 28, [name], kind, words))
    depth = [0, 1, 1, 2, 2, 2]
    left, top, cell = 448, 52, 26
    for row, name in enumerate(names):
        shapes.append(text(left - 10, top + cell * row + 18, name, "mono", "end"))
        shapes.append(text(left + cell * 6 + 12, top + cell * row + 18, f"+{depth[row]}", "mono"))
        seen, at = set(), row
        while at is not None:
            seen.add(at)
            at = parents[at]
        for column in range(len(names)):
            kind = "kept" if column in seen else "dim"
            shapes.append(
                f'<rect class="{kind}" x="{left + cell * column}" y="{top + cell * row}" width="22" height="22" rx="3"/>'
            )
    shapes.append(text(left + cell * 6 + 12, top - 10, "position", "small"))
    shapes.append(
        text(24, 226, "Everything before the tree is seen by all. Rows of one depth have one position.", "small")
    )
    return picture(
        "A draft tree and its mask: a guess sees itself and what stands before it on its branch", 700, 244, shapes
    )


def _plot(
    title: str, x_label: str, y_label: str, x_ticks: Sequence[tuple[float, str]], y_ticks: Sequence[tuple[float, str]]
) -> list[str]:
    """Axes of a square from (70, 20) to (400, 300), ticks at shares of its sides."""
    shapes = ['<path class="axis" d="M70 20V300H410"/>', text(240, 346, x_label, "small", "middle")]
    shapes.append(
        f'<text class="small" transform="translate(22 160) rotate(-90)" text-anchor="middle">{escape(y_label)}</text>'
    )
    shapes += [text(70 + 340 * at, 320, said, "small", "middle") for at, said in x_ticks]
    for at, said in y_ticks:
        y = 300 - 280 * at
        shapes += [text(62, y + 4, said, "small", "end"), f'<path class="axis" d="M66 {y:.1f}H70"/>']
    return shapes


def _curve(points: Iterable[tuple[float, float]], kind: str) -> str:
    at = "L".join(f"{70 + 340 * x:.1f} {300 - 280 * y:.1f}" for x, y in points)
    return f'<path class="curve {kind}" d="M{at}"/>'


def _legend(lines: Sequence[tuple[str, str]]) -> list[str]:
    shapes = []
    for number, (kind, said) in enumerate(lines):
        y = 60 + 30 * number
        shapes += [f'<path class="curve {kind}" d="M436 {y}H466"/>', text(476, y + 5, said)]
    return shapes


def calibration() -> str:
    """What the shipped drafter's probabilities are worth, by its calibration.json."""
    raw = json.loads((ROOT / "checkpoints" / "smollm2-135m-instruct" / "calibration.json").read_text())

    def chance(p: float, depth: int, rank: int) -> float:
        score = raw["bias"][depth - 1] + raw["slope"][depth - 1] * math.log(p / (1 - p)) + raw["rank"][rank - 1]
        return 1 / (1 + math.exp(-score))

    ticks = [(share / 100, f"{share}%") for share in (0, 25, 50, 75, 100)]
    grid = [share / 200 for share in range(1, 200)]
    shapes = _plot("", "the drafter's probability of a guess", "measured chance of acceptance", ticks, ticks)
    shapes.append(_curve([(0, 0), (1, 1)], "grey dash"))
    for kind, depth, rank, most in (("green", 1, 1, 1.0), ("blue", 8, 1, 1.0), ("ink", 1, 4, 1 / 4)):
        shapes.append(_curve([(p, chance(p, depth, rank)) for p in grid if p <= most], kind))
    shapes += _legend(
        [
            ("green", "first choice, depth 1"),
            ("blue", "first choice, depth 8"),
            ("ink", "fourth choice, depth 1"),
            ("grey dash", "if taken at its word"),
        ]
    )
    return picture(
        "Calibration of the shipped drafter: measured chance of acceptance by its own probability", 700, 360, shapes
    )


def budget() -> str:
    """Tokens a pass by verified draft tokens, from tree-budgets.json."""
    rows = json.loads((ROOT / "benchmarks" / "results" / "tree-budgets.json").read_text())["rows"]
    sizes = sorted({row["nodes"] for row in rows})

    def place(nodes: float) -> float:
        return math.log(nodes / sizes[0]) / math.log(sizes[-1] / sizes[0])

    x_ticks = [(place(nodes), str(nodes)) for nodes in sizes]
    y_ticks = [((tokens - 1) / 2.5, f"{tokens:g}") for tokens in (1, 1.5, 2, 2.5, 3, 3.5)]
    shapes = _plot("", "draft tokens verified in a pass", "tokens that a pass yields", x_ticks, y_ticks)
    lines = (
        ("ink", "tree, calibrated, lookup", "tree, calibrated and lookup"),
        ("green", "tree, calibrated", "tree, calibrated"),
        ("blue dash", "tree", "tree, as the drafter says"),
        ("grey", "chain", "chain"),
    )
    for kind, method, _ in lines:
        points = [(place(row["nodes"]), (row["accepted_length"] - 1) / 2.5) for row in rows if row["method"] == method]
        shapes.append(_curve(sorted(points), kind))
    shapes += _legend([(kind, said) for kind, _, said in lines])
    return picture(
        "Tokens a pass by verified draft tokens: chain, tree, calibrated tree, with lookup", 700, 360, shapes
    )


FIGURES = {"turns": step_in_turns, "features": features, "mask": mask, "calibration": calibration, "budget": budget}

if __name__ == "__main__":
    OUT.mkdir(parents=True, exist_ok=True)
    for name, draw in FIGURES.items():
        (OUT / f"{name}.svg").write_text(draw(), encoding="utf-8")
        print(f"docs/assets/how/{name}.svg")
