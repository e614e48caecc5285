"""Tokens a target pass: by kind of text, by verified nodes, sampled, in fp8."""

from collections.abc import Mapping
from statistics import fmean
from typing import Any

from benchmarks.redraw import raw
from benchmarks.redraw.catalogue import listed, markdown, picture, text
from eagle3_serving.eval.context import span
from eagle3_serving.plotting import Line, bars, canvas, line, places, plain_at_one, png

FAMILIES = {
    "alpaca": "instructions (alpaca)",
    "cnn_dm": "news summaries (cnn_dm)",
    "gsm8k": "arithmetic (gsm8k)",
    "humaneval": "code (humaneval)",
    "mt_bench": "chat (mt_bench)",
}
METHODS = {
    "tree, calibrated, lookup": "calibrated tree with lookup",
    "tree, calibrated": "calibrated tree",
    "tree": "tree, not calibrated",
    "chain": "chain",
}


def drafter_row(weights: str, draft: str, file: str = "fp8-drafter") -> dict[str, Any]:
    """A row of the drafter that ships, or of another file's: what benchmarks.fp8_drafter measured."""
    rows = raw.table(file)["rows"]
    return next(row for row in rows if (row["weights"], row["draft"]) == (weights, draft))


@text("answer-accepted-length")
def answer() -> str:
    chain, tree = drafter_row("as it is", "chain of 5"), drafter_row("as it is", "tree of 60")
    least = min(tree["families"], key=tree["families"].__getitem__)
    return (
        f"The drafter that ships yields {chain['accepted_length']:.2f} tokens a target pass as a chain of 5 and {tree['accepted_length']:.2f} as a "
        f"tree of 60 (plain decoding: 1), most on arithmetic and code, least on {FAMILIES[least]}, {tree['families'][least]:.2f}."
    )


@text("accepted-length")
def by_family() -> str:
    shapes = ("chain of 5", "tree of 60")
    found = [
        *((shape, _lengths(drafter_row("as it is", shape))) for shape in shapes),
        *(
            (f"{shape}, the {which} drafter", _lengths(drafter_row("as it is", shape, f"{which}-drafter")))
            for which in ("third", "second")
            for shape in shapes
        ),
        ("chain of 5, the first drafter", _lengths(raw.table("embedded-chain5"))),
        ("tree of 60, not calibrated, the first drafter", _lengths(raw.table("embedded-tree60"))),
    ]
    rows = [[name, *(f"{one:.2f}" for one in lengths), f"**{fmean(lengths):.2f}**"] for name, lengths in found]
    return markdown(["tokens a pass", *FAMILIES, "mean"], rows)


def _lengths(made: Mapping[str, Any]) -> list[float]:
    """By family, whether `benchmarks.fp8_drafter` measured them or `eagle3 eval`."""
    found = [made["families"][family] for family in FAMILIES]
    return [one["accepted_length"] if isinstance(one, Mapping) else one for one in found]


@text("accepted-by-context")
def by_context() -> str:
    """The same questions behind more and more text: `benchmarks.long_prompts`."""
    files = ("embedded-long-chain5", "third-long-chain5", "second-long-chain5", "second-long-window768")
    made, third, second, near = (raw.table(name) for name in files)
    starts = list(made["accepted_length_by_text"])
    named = [*((FAMILIES[name], one) for name, one in made["families"].items()), ("**all**", made)]
    rows = [
        [name, *(f"{found['accepted_length_by_text'][start]:.2f}" for start in starts)]
        for name, found in [
            *named,
            ("**all**, the third drafter", third),
            ("**all**, the second drafter", second),
            ("**all**, the second drafter looking back on 768 tokens", near),
        ]
    ]
    return markdown(["tokens of context", *(span(int(start)) for start in starts)], rows)


@text("context-pairs")
def pairs() -> str:
    """One question behind 450 and behind 4,096 tokens: `benchmarks.context_pairs`."""
    found = raw.table("context-pairs")["summary"]
    names = {"fourth": "", "third": ", the third drafter"}
    rows = []
    for drafter, more in names.items():
        for row in found:
            if row["drafter"] != drafter or (more and row["family"] != "all"):
                continue
            name = FAMILIES.get(row["family"], "**all**") + more
            figures = [f"{row[length]:.2f}" for length in ("short", "long")]
            sure = [f"{row[f'top_{length}']:.2f}" for length in ("short", "long")]
            rows.append(
                [name, row["questions"], *figures, f"{row['ratio']:.2f} ({row['error']:.2f})", " / ".join(sure)]
            )
    heads = ["tokens a pass, chain of 5", "questions", "at 450", "at 4,096", "ratio (error)", "target's own certainty"]
    return markdown(heads, rows)


@text("context-ratio")
def ratio() -> str:
    found = {row["drafter"]: row for row in raw.table("context-pairs")["summary"] if row["family"] == "all"}
    now, before = found["fourth"], found["third"]
    return (
        f"Over {now['questions']} questions the drafter that ships yields {now['long']:.2f} tokens a pass behind 4,096 tokens and {now['short']:.2f} behind 450: "
        f"{now['ratio']:.2f} of it (error {now['error']:.2f}); the third {before['ratio']:.2f}."
    )


@text("drawn-answers")
def drawn() -> str:
    """T = 1 on 200 answers that plain decoding drew: `benchmarks.drawn_answers`."""
    names = {"fourth": "", "third": ", the third drafter"}
    modes = {"chain": "chain of 5", "tree": "tree of 60"}
    proposals = {"coupled": "", "top": ", its likeliest tokens"}
    rows = [
        [
            modes[row["mode"]] + proposals[row["proposals"]] + more,
            *(f"{row['families'][family]:.2f}" for family in FAMILIES),
            f"**{row['mean']:.2f}** ({row['error']:.2f})",
        ]
        for drafter, more in names.items()
        for row in raw.table("drawn-answers")["rows"]
        if row["drafter"] == drafter
    ]
    return markdown(["drawn at T = 1, played back", *FAMILIES, "mean (error)"], rows)


@text("drawn-warm")
def drawn_warm() -> str:
    """At a lower temperature, with a nucleus: what part of the noise coupled drafts go by."""
    found = raw.table("drawn-answers-warm")
    about = found["about"]
    modes = {"chain": "chain of 5", "tree": "tree of 60"}
    rows = [
        [
            modes[row["mode"]],
            f"{row['share']:g} of the noise" if row["proposals"] == "coupled" else "likeliest tokens",
            *(f"{row['families'][family]:.2f}" for family in FAMILIES),
            f"**{row['mean']:.2f}** ({row['error']:.2f})",
        ]
        for row in found["rows"]
    ]
    heading = f"T = {about['temperature']:g}, top-p {about['top_p']:g}, {about['prompts']} answers"
    return markdown([heading, "guesses by", *FAMILIES, "mean (error)"], rows)


def drawn_length(mode: str, proposals: str) -> float:
    """Tokens a pass at T = 1 of the drafter that ships."""
    rows = raw.table("drawn-answers")["rows"]
    wanted = "fourth", mode, proposals
    return next(float(row["mean"]) for row in rows if (row["drafter"], row["mode"], row["proposals"]) == wanted)


@text("coupled-gain")
def coupled_gain() -> str:
    tree, chain = ([drawn_length(mode, p) for p in ("coupled", "top")] for mode in ("tree", "chain"))
    return f"a tree of 60 yields {tree[0]:.2f} tokens a pass in the place of {tree[1]:.2f}, a chain of 5 {chain[0]:.2f} in the place of {chain[1]:.2f}"


@picture("accepted-length.png")
def by_family_png() -> bytes:
    figure, axes = canvas("Tokens a target pass, the drafter that ships, T = 0")
    for number, name in enumerate(("chain of 5", "tree of 60")):
        found = drafter_row("as it is", name)["families"]
        values = [found[family] for family in FAMILIES]
        bars(axes[0], values, number, 2, name, ours=name.startswith("tree"), shown="%.2f")
    plain_at_one(axes[0])
    places(axes[0], list(FAMILIES))
    axes[0].set_ylabel("tokens a target pass")
    return png(figure)


@text("tree-budgets")
def budgets() -> str:
    rows = raw.table("tree-budgets")["rows"]
    nodes = list(dict.fromkeys(row["nodes"] for row in rows))
    by = {(row["method"], row["nodes"]): row["accepted_length"] for row in rows}
    return markdown(
        ["verified draft tokens", *nodes],
        [[name, *(f"{by[method, n]:.2f}" for n in nodes)] for method, name in METHODS.items()],
    )


@text("lookup-on-news")
def lookup_on_news() -> str:
    by = {(row["method"], row["nodes"]): row["families"]["cnn_dm"] for row in raw.table("tree-budgets")["rows"]}
    without, given = by["tree, calibrated", 4], by["tree, calibrated, lookup", 4]
    return f"On news summaries, at 4 nodes: {without:.2f} without lookup, {given:.2f} with."


@picture("tree-budgets.png")
def budgets_png() -> bytes:
    rows = raw.table("tree-budgets")["rows"]
    nodes = list(dict.fromkeys(row["nodes"] for row in rows))
    figure, axes = canvas("Tokens a target pass by verified draft tokens")
    for number, (method, name) in enumerate(METHODS.items()):
        y = [row["accepted_length"] for row in rows if row["method"] == method]
        line(axes[0], Line(name, range(len(nodes)), y), number - 1, ours=not number)
    places(axes[0], nodes)
    axes[0].set(xlabel="draft tokens verified a pass", ylabel="tokens a target pass")
    return png(figure)


@text("answer-drafter-fp8")
def fp8_answer() -> str:
    chain, tree = (
        tuple(drafter_row(w, d)["accepted_length"] for w in ("as it is", "fp8")) for d in ("chain of 5", "tree of 60")
    )
    return (
        f"It loses {100 * (1 - chain[1] / chain[0]):.1f}% of the tokens a pass as a chain of 5 ({chain[1]:.3f} against {chain[0]:.3f}) and "
        f"{100 * (1 - tree[1] / tree[0]):.1f}% as a tree of 60 ({tree[1]:.3f} against {tree[0]:.3f}); no answer changes, and the time it wins "
        "is unmeasured."
    )


@text("drafter-fp8")
def fp8() -> str:
    rows = raw.table("fp8-drafter")["rows"]
    return markdown(
        ["drafter's linear layers", "draft", *FAMILIES, "mean"],
        [
            [
                row["weights"],
                row["draft"],
                *(f"{row['families'][family]:.2f}" for family in FAMILIES),
                f"**{row['accepted_length']:.3f}**",
            ]
            for row in rows
        ],
    )


@text("going-on")
def going_on() -> str:
    """What the second drafter won and lost by going on with long prompts, most of them news."""
    before = raw.table("embedded-chain5")["families"]
    now = drafter_row("as it is", "chain of 5", "second-drafter")["families"]
    told = [
        f"{name} from {before[family]['accepted_length']:.2f} to {now[family]:.2f}"
        for family, name in (
            ("cnn_dm", "news summaries"),
            ("alpaca", "instructions"),
            ("gsm8k", "arithmetic"),
            ("humaneval", "code"),
        )
    ]
    return f"Tokens a pass as a chain of 5: {listed(told)}."


@text("drafter-fp8-by-prompt")
def fp8_by_prompt() -> str:
    """Differences to the drafter as it is, prompt by prompt, and whether they are more than the spread."""
    told = []
    for weights, words in (("fp8", ""), ("fp8, the head as it is", "with the head as it is ")):
        parts, clear = [], False
        for draft in ("chain of 5", "tree of 60"):
            found = drafter_row(weights, draft)["a_prompt_against_as_it_is"]
            clear = clear or abs(found["mean"]) > 2 * found["standard_error"]
            parts.append(f"{found['mean']:+.3f} as a {draft} (standard error {found['standard_error']:.3f})")
        told.append(f"{words}{listed(parts)}, {'more than the spread' if clear else 'within the spread'}")
    return f"Tokens a pass prompt by prompt: {'; '.join(told)}."
