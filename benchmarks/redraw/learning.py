"""What training gives: the paper's findings again, and a public trainer beside ours."""

import itertools
from collections.abc import Mapping
from math import log2
from statistics import fmean, median
from typing import Any

from benchmarks.redraw import raw
from benchmarks.redraw.catalogue import PICTURES, listed, markdown, picture, text
from benchmarks.redraw.lengths import drafter_row
from benchmarks.train_findings_report import findings_png
from eagle3_serving.plotting import bars, canvas, places, png

NAMES = {
    "paper": "the paper's method, all answer tokens",
    "steps-1": "one step in place of training-time test",
    "steps-3": "3 steps of training-time test",
    "steps-7": "7 steps",
    "eagle-2": "EAGLE-2's method",
    "top": "the top feature alone, no fusion",
    "low-middle-top": "low, middle and top fused (the paper: low, middle, high)",
    "constraint": "EAGLE-2's feature constraint alone",
    "data-1/2": "1/2 of the data",
    "data-1/4": "1/4",
    "data-1/8": "1/8",
    "total-variation": "objective: total variation (one seed)",
    "acceptance": "objective: likelihood of acceptance (one seed)",
    "fc-norm": "EAGLE-3.1's norm on each feature",
    "post-norm": "EAGLE-3.1's post-norm state fed back",
    "eagle-3.1": "both, EAGLE-3.1's shape",
    "eagle-3.1-steps-3": "the same, 3 steps",
    "calibrated": "calibrated (one seed)",
}
COMMON = "paper"

for _name in ("train-findings", "train-fusion"):
    PICTURES[f"{_name}.png"] = lambda name=_name: findings_png(raw.table(name)["runs"], COMMON)  # type: ignore[misc]


def _rows(name: str) -> dict[str, Mapping[str, Any]]:
    return {row["name"]: row for row in raw.table(name)["summary"]}


@text("answer-training")
def answer() -> str:
    rows = _rows("train-findings")
    one, eagle2 = rows["steps-1"]["tree_against_paper"], rows["eagle-2"]["tree_against_paper"]
    top, eighth = rows["top"]["tree_against_paper"], rows["data-1/8"]["tree_against_paper"]
    return (
        f"At {rows[COMMON]['tokens']:,} answer tokens training-time test is worth {-one['mean']:.2f} tokens a pass and the method as a whole "
        f"{-eagle2['mean']:.2f} over EAGLE-2's, eight times the data {-eighth['mean']:.2f}; that fused features beat the top one is not shown "
        f"({-top['mean']:.3f}, deviation {top['deviation']:.3f})."
    )


@text("train-shipped")
def shipped() -> str:
    """The run that the drafter that ships goes back to, as it was measured on the way."""
    rows = [[f"{row['tokens']:,}", f"{row['chain']:.2f}", f"{row['tree']:.2f}"] for row in raw.lines("train-shipped")]
    return markdown(["further answer tokens seen", "chain of 5", "tree of 60"], rows)


@text("train-findings")
def findings() -> str:
    return markdown(
        ["", "tree of 60: tokens a pass", "against the paper's, seed by seed", "chain of 5", "seeds"],
        _table("train-findings"),
    )


def _beside(shape: str) -> dict[str, tuple[float, float, float, float]]:
    """By drafter: tokens a pass, ms of drafting and of verifying, tokens a second. All verify the same rows, so each is given the
    mean of their times of that."""
    settings = raw.table("parallel-heads")["settings"]
    rows = {name.removesuffix(f" {shape}"): row for name, row in settings.items() if name.endswith(f" {shape}")}
    verify = fmean(row["verify_ms"] for row in rows.values())
    return {
        name: (
            row["accepted_length"],
            row["draft_ms"],
            verify,
            1000 * row["accepted_length"] / (row["draft_ms"] + verify),
        )
        for name, row in rows.items()
    }


@text("parallel-heads")
def parallel_heads() -> str:
    rows = [
        [f"{shape}, {name}", f"{length:.2f}", f"{draft:.0f}", f"{verify:.0f}", f"{speed:.2f}"]
        for shape in ("chain", "tree")
        for name, (length, draft, verify, speed) in _beside(shape).items()
    ]
    return markdown(["", "tokens a pass", "drafting, ms", "verifying, ms", "tokens/s"], rows)


@text("answer-parallel-heads")
def parallel_answer() -> str:
    said = []
    for shape in ("tree", "chain"):
        rows = _beside(shape)
        length, draft, _, speed = rows.pop("autoregressive")
        name, best = max(rows.items(), key=lambda row: row[1][3])
        said.append(
            f"as a {shape} the best of them ({name}) accepts {best[0]:.2f} tokens a pass against {length:.2f}, drafts in {best[1]:.0f} ms against "
            f"{draft:.0f}, and gives {best[3] / speed:.2f} times the tokens a second"
        )
    return f"Beside the drafter that they began from, {'; '.join(said)}."


@text("train-findings-short")
def findings_short() -> str:
    chosen = ("paper", "steps-1", "eagle-2", "top", "low-middle-top", "data-1/2", "data-1/4", "data-1/8")
    measured = _rows("train-findings")
    named = zip((name for name in NAMES if name in measured), _table("train-findings"), strict=True)
    rows = [row for name, row in named if name in chosen]
    return markdown(["", "tokens a pass", "against the paper's method, seed by seed"], [row[:3] for row in rows])


@text("train-findings-h100")
def on_h100() -> str:
    """One seed at ten times the tokens, on an H100."""
    runs = {run["name"]: run for run in raw.table("train-findings-h100")["runs"]}
    rows = [
        [NAMES[name], f"{run['tokens']:,}", f"{run['tree']:.3f}", f"{run['chain']:.3f}"]
        for name in NAMES
        if (run := runs.get(name)) is not None
    ]
    return markdown(["", "answer tokens", "tree of 60", "chain of 5"], rows)


@text("train-domain")
def domain() -> str:
    """Before and after by family, mean of three seeds."""
    record = raw.table("train-domain")
    modes, own = record["table"], record["about"]["own"]
    rows = []
    for family, tree in modes["tree"].items():
        chain = modes["chain"][family]
        name = f"**{family}** (trained for)" if family in own else family
        rows.append([name, *(cell for one in (chain, tree) for cell in (f"{one['before']:.2f}", _change(one)))])
    return markdown(["", "chain of 5, before", "after", "tree of 60, before", "after"], rows)


def _change(found: Mapping[str, Any]) -> str:
    """After, the change with its error over prompts, and the seeds' range."""
    seeds = found["by_seed"]
    return f"{found['after']:.2f} ({found['change']:+.2f}, error {found['error']:.2f}; seeds {min(seeds):+.2f} to {max(seeds):+.2f})"


@text("answer-domain")
def domain_answer() -> str:
    means = raw.table("train-domain")["means"]
    return (
        f"In the domain {means['tree']['own']:+.2f} tokens a pass as a tree and {means['chain']['own']:+.2f} as a chain, elsewhere "
        f"{means['tree']['elsewhere']:+.2f} and {means['chain']['elsewhere']:+.2f} on average."
    )


@text("train-fusion")
def fusion() -> str:
    return markdown(
        ["400,000 tokens", "tree of 60", "against fusion, seed by seed", "chain of 5", "seeds"], _table("train-fusion")
    )


def _table(name: str) -> list[list[object]]:
    rows = _rows(name)
    return [
        [
            NAMES[n],
            _value(rows[n]["tree"]),
            _value(rows[n][f"tree_against_{COMMON}"], sign="+"),
            _value(rows[n]["chain"]),
            rows[n]["seeds"],
        ]
        for n in NAMES
        if n in rows
    ]


def _value(found: Mapping[str, float | None] | None, sign: str = "") -> str:
    if found is None:
        return ""
    spread = "" if found["deviation"] is None else f" ({found['deviation']:.3f})"
    return f"{found['mean']:{sign}.3f}{spread}"


@text("answer-trainers-compared")
def trainers_answer() -> str:
    ours, theirs = raw.table("train-public")["runs"]
    return (
        f"On the same {ours['answer_tokens']:,} answer tokens and two CPU cores ours trains {ours['tokens_per_second']:.0f} tokens a second against "
        f"{theirs['tokens_per_second']:.0f} of speculators 0.9, and the drafter yields {ours['tree']:.3f} against {theirs['tree']:.3f} tokens a pass as a tree of 60."
    )


@text("train-ranks")
def by_processes() -> str:
    rates = raw.table("train-ranks")["tokens_per_second"]
    rows = [[way, f"{median(found):.0f}", f"{min(found):.0f}", f"{max(found):.0f}"] for way, found in rates.items()]
    return markdown(["", "answer tokens a second", "least", "most"], rows)


@text("train-public")
def trainers() -> str:
    names = {
        "eagle3-serving": "`eagle3 train`",
        "speculators": "speculators 0.9",
        "eagle3-serving-compiled": "`eagle3 train --compile`",
    }
    rows = [
        [
            names[run["name"]],
            run["seed"],
            f"{run['tokens_per_second']:.0f}",
            f"{run['seconds']:.0f}",
            f"{run['chain']:.3f}",
            f"{run['tree']:.3f}",
        ]
        for file in ("train-public", "train-compiled")
        for run in raw.table(file)["runs"]
    ]
    rows = [[f"{row[0]}, another day" if place > 1 else row[0], *row[1:]] for place, row in enumerate(rows)]
    return markdown(["", "seed", "answer tokens a second", "seconds", "tokens a pass, chain of 5", "tree of 60"], rows)


@picture("train-public.png")
def trainers_png() -> bytes:
    ours, theirs = raw.table("train-public")["runs"]
    figure, axes = canvas("Same answers, features, cores; one seed", panels=2, across=True, width_ratios=(1, 2))
    for number, (run, name) in enumerate(((ours, "eagle3 train"), (theirs, "speculators 0.9"))):
        bars(axes[0], [run["tokens_per_second"]], number, 2, name, ours=run is ours, shown="%.0f")
        bars(axes[1], [run["chain"], run["tree"]], number, 2, name, ours=run is ours, shown="%.2f")
    axes[0].set(ylabel="answer tokens trained on a second", xticks=[])
    places(axes[1], ["chain of 5", "tree of 60"])
    axes[1].set(ylabel="tokens a target pass (plain: 1)", ylim=(1.0, None))
    return png(figure)


@text("fusion-by-seed")
def fusion_by_seed() -> str:
    runs = {(run["name"], run["seed"]): run for run in raw.table("train-fusion")["runs"]}
    tree, chain = (
        listed([f"{run[kind] - runs['top', seed][kind]:+.3f}" for (name, seed), run in runs.items() if name == COMMON])
        for kind in ("tree", "chain")
    )
    return f"Fusion less the top feature alone, seed by seed: {tree} as a tree, {chain} as a chain; each is ahead in one seed."


@text("data-doublings")
def doublings() -> str:
    rows = _rows("train-findings")
    curve = [rows[name]["tree"]["mean"] for name in ("data-1/8", "data-1/4", "data-1/2", COMMON)]
    gains = [f"{more - less:.2f}" for less, more in itertools.pairwise(curve)]
    return f"Each doubling of the data gave {listed(gains)} tokens a pass."


@text("data-doublings-h100")
def doublings_h100() -> str:
    """What each doubling gave, and what a straight line over all or the last of them would foretell for ten times as many."""
    runs = {run["name"]: run for run in raw.table("train-findings-h100")["runs"]}
    curve = [(runs[name]["tokens"], runs[name]["tree"]) for name in ("data-1/8", "data-1/4", "data-1/2", COMMON)]
    steps = [(more[1] - less[1]) / log2(more[0] / less[0]) for less, more in itertools.pairwise(curve)]
    low, high = fmean(steps) * log2(10), steps[-1] * log2(10)
    now, before = (drafter_row("as it is", "tree of 60", file) for file in ("fp8-drafter", "third-drafter"))
    gained = now["accepted_length"] - before["accepted_length"]
    return (
        f"Each doubling gave {listed([f'{step:.2f}' for step in steps])} tokens a pass as a tree, more each time: nothing flattens yet, so that no law with an end fits. A straight line over doublings foretells "
        f"{low:.1f} more for ten times the tokens, the last doubling's slope {high:.1f}; the drafter that ships gained {gained:.2f} by seeing 3.5 million more after 5.8."
    )
