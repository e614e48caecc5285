"""Tokens a target pass: by kind of text, by verified nodes, sampled, in fp8; one request on vLLM; the tree's arithmetic."""

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.redraw import raw
from benchmarks.redraw.catalogue import listed, markdown, picture, text, times
from eagle3_serving.plotting import OURS, PLAIN, Line, canvas, colours, line, places, png

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


def _drafter(weights: str, draft: str) -> dict[str, Any]:
    """A row of the drafter that ships: what benchmarks.fp8_drafter measured."""
    rows = raw.table("fp8-drafter")["rows"]
    return next(row for row in rows if (row["weights"], row["draft"]) == (weights, draft))


@text("answer-accepted-length")
def answer() -> str:
    chain, tree = _drafter("as it is", "chain of 5"), _drafter("as it is", "tree of 60")
    least = min(tree["families"], key=tree["families"].__getitem__)
    return (
        f"The drafter that ships yields {chain['accepted_length']:.2f} tokens a target pass as a chain of 5 and {tree['accepted_length']:.2f} as a "
        f"tree of 60 (plain decoding: 1), most on arithmetic and code, least on {FAMILIES[least]}, {tree['families'][least]:.2f}."
    )


@text("accepted-length")
def by_family() -> str:
    rows = [
        [name, *(f"{found['families'][family]:.2f}" for family in FAMILIES), f"**{found['accepted_length']:.2f}**"]
        for name in ("chain of 5", "tree of 60")
        for found in [_drafter("as it is", name)]
    ]
    sampled = [
        [f"{name}, sampled at T = 1", *(f"{made['families'][f]['accepted_length']:.2f}" for f in FAMILIES), f"**{_mean(made):.2f}**"]
        for name, file in (("chain of 5", "embedded-T1-chain5"), ("tree of 60", "embedded-T1-tree60"))
        for made in [raw.table(file)]
    ]
    before = [
        [f"{name}, the drafter before", *(f"{made['families'][f]['accepted_length']:.2f}" for f in FAMILIES), f"**{_mean(made):.2f}**"]
        for name, file in (("chain of 5", "embedded-chain5"), ("tree of 60, not calibrated", "embedded-tree60"))
        for made in [raw.table(file)]
    ]
    return markdown(["tokens a pass", *FAMILIES, "mean"], [*rows, *sampled, *before])


def _mean(made: Mapping[str, Any]) -> float:
    return sum(made["families"][family]["accepted_length"] for family in FAMILIES) / len(FAMILIES)


@text("sampled-passes")
def sampled() -> str:
    """Over all passes, where a long answer counts for more."""
    chain, tree = raw.table("embedded-T1-chain5"), raw.table("embedded-T1-tree60")
    return f"{chain['accepted_length']:.2f} / {tree['accepted_length']:.2f}"


@picture("accepted-length.png")
def by_family_png() -> bytes:
    figure, axes = canvas("Tokens a target pass, the drafter that ships, T = 0")
    names = ("chain of 5", "tree of 60")
    for number, (name, colour, hatch) in enumerate(zip(names, (colours(0)[0], OURS), ("//", ""), strict=True)):
        found = _drafter("as it is", name)["families"]
        at = [place + (number - 0.5) * 0.4 for place in range(len(FAMILIES))]
        bars = axes[0].bar(at, [found[family] for family in FAMILIES], 0.38, color=colour, hatch=hatch, edgecolor="white", label=name)
        axes[0].bar_label(bars, fmt="%.2f", fontsize=9)
    axes[0].axhline(1.0, color=PLAIN, linestyle="--", linewidth=1.2, label="plain decoding")
    places(axes[0], list(FAMILIES))
    axes[0].set_ylabel("tokens a target pass")
    axes[0].grid(axis="x", visible=False)
    return png(figure)


@text("tree-budgets")
def budgets() -> str:
    rows = raw.table("tree-budgets")["rows"]
    nodes = list(dict.fromkeys(row["nodes"] for row in rows))
    by = {(row["method"], row["nodes"]): row["accepted_length"] for row in rows}
    return markdown(
        ["verified draft tokens", *nodes], [[name, *(f"{by[method, n]:.2f}" for n in nodes)] for method, name in METHODS.items()]
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
    chain, tree = (tuple(_drafter(w, d)["accepted_length"] for w in ("as it is", "fp8")) for d in ("chain of 5", "tree of 60"))
    return (
        f"{100 * (1 - chain[1] / chain[0]):.1f}% of the tokens a pass as a chain of 5 ({chain[1]:.3f} against {chain[0]:.3f}) and "
        f"{100 * (1 - tree[1] / tree[0]):.1f}% as a tree of 60 ({tree[1]:.3f} against {tree[0]:.3f}); no answer changes, and the time it wins "
        "is unmeasured."
    )


@text("drafter-fp8")
def fp8() -> str:
    rows = raw.table("fp8-drafter")["rows"]
    return markdown(
        ["drafter's linear layers", "draft", *FAMILIES, "mean"],
        [
            [row["weights"], row["draft"], *(f"{row['families'][family]:.2f}" for family in FAMILIES), f"**{row['accepted_length']:.3f}**"]
            for row in rows
        ],
    )


ONE_REQUEST = {
    "vllm-fp32-chain2": "fp32, chain of 2",
    "vllm-fp32-chain3": "fp32, chain of 3",
    "vllm-bf16-chain1": "bf16, chain of 1",
    "vllm-bf16-chain2": "bf16, chain of 2",
    "demo-vllm-chain3": "`make demo`: fp32, chain of 3",
    "vllm-overfit-fp32-chain4": "fp32, chain of 4, a drafter over-fitted to the ten prompts",
}


@text("answer-vllm-one-request")
def one_request_answer() -> str:
    two, three, demo, over = (
        raw.table(name)["speedup"] for name in ("vllm-fp32-chain2", "vllm-fp32-chain3", "demo-vllm-chain3", "vllm-overfit-fp32-chain4")
    )
    return (
        f"In fp32 a chain of 2 is at {two:.2f}x and a chain of 3 at {three:.2f}x of plain vLLM, the demo's ten prompts at {demo:.2f}x; a drafter "
        f"that is nearly always right shows what the machinery allows, {over:.1f}x."
    )


@text("vllm-one-request")
def one_request() -> str:
    rows = []
    for file, name in ONE_REQUEST.items():
        made = raw.table(file)
        same = {True: "all", False: "NOT ALL", None: "not asserted (bf16)"}[made["identical"]]
        rate = f"{made['tokens_per_second']:.1f} / {made['plain_tokens_per_second']:.1f}"
        rows.append([name, f"**{times(made['speedup'])}**", f"{made['accepted_length']:.2f}", rate, same, made["repeats"]])
    return markdown(["setting", "over plain vLLM", "tokens a pass", "tokens/s, and plain's", "answers identical", "rounds"], rows)


@picture("vllm-one-request.png")
def one_request_png() -> bytes:
    figure, axes = canvas("vLLM, one request: speed by kind of text")
    panel, names = axes[0], list(FAMILIES)
    for number, file in enumerate(("vllm-fp32-chain2", "vllm-fp32-chain3", "vllm-bf16-chain2")):
        found = raw.table(file)["families"]
        at = [place + (number - 1) * 0.27 for place in range(len(names))]
        colour = OURS if number == 1 else colours(number)[0]
        panel.bar(at, [found[name]["speedup"] for name in names], 0.25, color=colour, hatch=("", "//", "..")[number], edgecolor="white", label=ONE_REQUEST[file])
    panel.axhline(1.0, color=PLAIN, linestyle="--", linewidth=1.2, label="plain decoding")
    places(panel, names)
    panel.set_ylabel("tokens/s (plain = 1)")
    panel.grid(axis="x", visible=False)
    return png(figure)


@text("vllm-equal-tokens")
def equal_tokens() -> str:
    verified = raw.table("vllm-equal-tokens")["verified"]
    return markdown(
        ["verified draft tokens a pass", *verified],
        [[who, *(f"{found[who]['tokens_per_pass']:.2f}" for found in verified.values())] for who in ("vLLM's own chain", "our tree")],
    )


@picture("vllm-equal-tokens.png")
def equal_tokens_png() -> bytes:
    verified = raw.table("vllm-equal-tokens")["verified"]
    figure, axes = canvas("Real vLLM: tokens a pass at equal verified tokens")
    for who in ("vLLM's own chain", "our tree"):
        y = [found[who]["tokens_per_pass"] for found in verified.values()]
        line(axes[0], Line(who, range(len(y)), y), 0, ours=who == "our tree")
    places(axes[0], list(verified))
    axes[0].set(xlabel="draft tokens verified a pass", ylabel="tokens a target pass")
    return png(figure)


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
        found = [row[who]["whole"] for row in rows]
        medians = [one["median"] / 1000 for one in found]
        low, high = ([abs(one[side] / 1000 - m) for one, m in zip(found, medians, strict=True)] for side in ("p10", "p90"))
        at = [place + (number - 0.5) * 0.4 for place in range(len(rows))]
        colour = OURS if who == "ours" else colours(0)[0]
        bars = axes[0].bar(at, medians, 0.38, yerr=[low, high], capsize=3, color=colour, hatch="" if number else "//", edgecolor="white", label=name)
        axes[0].bar_label(bars, fmt="%.1f", fontsize=9, padding=3)
    places(axes[0], [f"batch {row['batch']}" for row in rows])
    axes[0].set(ylabel="milliseconds (log; p10 to p90)", yscale="log")
    axes[0].grid(axis="x", visible=False)
    return png(figure)


def _ms(found: Mapping[str, float]) -> str:
    return f"{found['median'] / 1000:.1f}"


def _spread(found: Mapping[str, float]) -> str:
    return f"{_ms(found)} ({found['p10'] / 1000:.1f}-{found['p90'] / 1000:.1f})"


def p_values(tests: Sequence[Mapping[str, Any]]) -> str:
    return listed([f"{test['p_value']:.2f}" for test in tests])


@text("going-on")
def going_on() -> str:
    """What the drafter that ships won and lost by going on with long prompts, most of them news."""
    before, now = raw.table("embedded-chain5")["families"], _drafter("as it is", "chain of 5")["families"]
    told = [
        f"{name} from {before[family]['accepted_length']:.2f} to {now[family]:.2f}"
        for family, name in (("cnn_dm", "news summaries"), ("alpaca", "instructions"), ("gsm8k", "arithmetic"), ("humaneval", "code"))
    ]
    return f"Tokens a pass as a chain of 5: {listed(told)}."


@text("drafter-fp8-by-prompt")
def fp8_by_prompt() -> str:
    """Differences to the drafter as it is, prompt by prompt."""
    told = []
    for draft in ("chain of 5", "tree of 60"):
        found = _drafter("fp8", draft)["a_prompt_against_as_it_is"]
        if abs(found["mean"]) > 2 * found["standard_error"]:
            raise ValueError("fp8 loses more than the spread: the sentence would be untrue")
        told.append(f"{found['mean']:+.3f} tokens a pass as a {draft} (standard error {found['standard_error']:.3f})")
    return f"Prompt by prompt {listed(told)}: within the spread."
