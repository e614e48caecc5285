"""Whether the answers are the target's, and whether anything is lost or breaks."""

from typing import Any

from benchmarks.redraw import raw
from benchmarks.redraw.catalogue import listed, markdown, picture, text
from eagle3_serving.plotting import bars, canvas, png

CASES = {
    "batches of 8": "50 prompts, eight in flight",
    "single": "one at a time",
    "prefix cache hits": "prefix cache hits",
    "json grammar": "a JSON grammar",
    "stop strings": "stop strings",
    "logprobs": "logprobs",
    "repetition penalty": "a repetition penalty",
    "minimum length": "a minimum length",
}


@text("answer-exactness-and-law")
def answer() -> str:
    rows, trees = raw.table("identity")["rows"], raw.table("vllm-trees-graphs")
    servers = raw.table("sglang-identity")["servers"]
    law = raw.table("vllm-law")["law"]
    equal = all(row["identical"] == row["of"] for row in rows) and not sum(
        s["differing"] for s in trees["settings"].values()
    )
    drawn_rows = raw.table("identity-T1")["rows"]
    drawn = f"{drawn_rows[0]['of']} prompts in {len({r['mode'] for r in drawn_rows})} modes"
    equal &= all(row["identical"] == row["of"] for row in drawn_rows)
    batches = [server["cases"]["batches of 8"] for server in servers.values()]
    if not equal or any(case["identical"] != case["requests"] for case in batches):
        raise ValueError("an answer differs: the sentence would be untrue")
    return (
        f"At T = 0 in fp32, none: {rows[0]['of']} prompts in {len({r['mode'] for r in rows})} modes on the embedded engine, {trees['prompts']} in "
        f"{len(trees['settings'])} settings with trees on vLLM, {raw.table('sglang-identity')['prompts']} on SGLang with every tree, say plain "
        f"decoding's tokens; at T = 1 {drawn} on the embedded engine do, and {law['equal_with_the_same_noise']:,} of {law['draws']:,} sampled requests on vLLM with trees say what plain vLLM "
        "says with the same noise."
    )


@text("identity")
def identity() -> str:
    return _identical("identity")


@text("identity-T1")
def drawn_identity() -> str:
    return _identical("identity-T1")


def _identical(file: str) -> str:
    rows = raw.table(file)["rows"]
    batches = sorted({row["batch"] for row in rows})
    by = {(row["mode"], row["batch"]): f"{row['identical']} of {row['of']}" for row in rows}
    modes = list(dict.fromkeys(row["mode"] for row in rows))
    return markdown(
        ["embedded engine, in flight", *batches], [[m, *(by.get((m, b), "-") for b in batches)] for m in modes]
    )


@text("sglang-identity")
def sglang_identity() -> str:
    servers = raw.table("sglang-identity")["servers"]
    rows = []
    for name, found in servers.items():
        cases = [f"{found['cases'][case]['identical']} of {found['cases'][case]['requests']}" for case in CASES]
        length = f"{found['tokens_a_pass']:.3f}"
        if "embedded_tokens_a_pass" in found:
            length += f" ({found['embedded_tokens_a_pass']:.3f})"
        rows.append([name, *cases, length])
    return markdown(["SGLang", *CASES.values(), "tokens a pass (embedded engine's)"], rows)


@text("law")
def law() -> str:
    made = raw.table("vllm-law")["law"]
    found = [f"{test['p_value']:.2f}" for test in made["tests"]]
    return (
        f"{made['equal_with_the_same_noise']:,} of {made['draws']:,} requests say the same two tokens with trees and without, {made['accepted']:,} of "
        f"their second tokens accepted drafts. Against runner V1, whose noise is other, chi-square tests of first and second tokens of three prompts: "
        f"p {listed(found)}; the least of six, corrected, {made['least_p_value_corrected']:.2f}."
    )


@picture("law.png")
def law_png() -> bytes:
    """Second tokens of the first prompt: where drafts are accepted."""
    found = raw.table("vllm-law")["law"]["tests"][1]
    counts = list(found["counts"].values())
    figure, axes = canvas(f"T = 1: second tokens to “{found['prompt']}” (p = {found['p_value']:.2f})")
    for number, name in enumerate(("trees", "plain vLLM, other noise")):
        values = [count[number] for count in counts]
        spread = [[2 * value**0.5 for value in values]] * 2  # two standard deviations of a count
        bars(axes[0], values, number, 2, name, ours=name == "trees", spread=spread)
    axes[0].set(xlabel="tokens, the most frequent first", ylabel="times said (± 2 √count)", xticks=[])
    return png(figure)


@text("vllm-trees")
def vllm_trees() -> str:
    now, before = raw.table("vllm-trees-graphs")["settings"], raw.table("vllm-trees")["settings"]
    rows = []
    for name, found in now.items():
        length = f"{found['tokens_per_pass']:.3f}"
        if "embedded" in found:
            length += f" ({found['embedded']['tokens_per_pass']:.3f})"
        marks = [found["differing"], found["leaked_blocks"], found["preemptions"], found["prefix_hits"]]
        rows.append([name, length, f"{before[name]['tokens_per_pass']:.3f}", *marks])
    headings = [
        "setting",
        "tokens a pass (embedded engine's)",
        "before graphs, the first drafter",
        "answers that differ",
        "lost blocks",
    ]
    return markdown([*headings, "preemptions", "prefix hits"], rows)


@text("answer-vllm-trees")
def vllm_trees_answer() -> str:
    made = raw.table("vllm-trees-graphs")
    of = {n: made["settings"][f"tree of {n}, one request"] for n in (16, 60)}
    if any(one["tokens_per_pass"] != one["embedded"]["tokens_per_pass"] for one in of.values()):
        raise ValueError("the embedded engine's tokens a pass are not vLLM's: the sentence would be untrue")
    return (
        f"Yes, token for token: a tree of 16 yields {of[16]['tokens_per_pass']:.3f} tokens a pass and one of 60 {of[60]['tokens_per_pass']:.3f}, the "
        "embedded engine's to the pass, and at equal verified tokens more than vLLM's own chain; what a step takes on a GPU in this form is unmeasured."
    )


@text("answer-checkpoints")
def checkpoints_answer() -> str:
    fuzz, memory = raw.table("fuzz-checkpoints"), raw.table("convert-memory")
    if fuzz["failures"]:
        raise ValueError("a checkpoint failed otherwise: the sentence would be untrue")
    return (
        f"{fuzz['count']:,} damaged or hostile checkpoints each end with one line and exit code 0, 1 or 2; converting {memory['bytes'] / 1e9:.2f} GB takes "
        f"{memory['rename_peak_mb']:.0f} MB above the interpreter and {memory['rename_over_copy']['median']:.1f} times a plain copy's time."
    )


@text("fuzz")
def fuzz() -> str:
    codes = raw.table("fuzz-checkpoints")["exit_codes"]
    return markdown(
        ["damage", "exit 0", "exit 1", "exit 2"],
        [[kind, *(found.get(c, 0) for c in "012")] for kind, found in codes.items()],
    )


@text("convert-memory")
def convert_memory() -> str:
    made = raw.table("convert-memory")
    ratio = made["rename_over_copy"]
    return markdown(
        ["", "renaming", "with the parity proof"],
        [
            ["peak memory above the interpreter, MB", f"{made['rename_peak_mb']:.0f}", f"{made['proof_peak_mb']:.0f}"],
            [
                "over a plain copy's time",
                f"{ratio['median']:.1f} ({min(ratio['all']):.1f}-{max(ratio['all']):.1f})",
                "",
            ],
            [
                "seconds",
                f"{sorted(made['rename_s'])[len(made['rename_s']) // 2]:.2f}",
                listed([f"{s:.1f}" for s in made["proof_s"]]),
            ],
        ],
    )


@text("sglang-broken")
def broken() -> str:
    rows = []
    for name, found in raw.table("sglang-broken").items():
        means, stock, plugin = found.values()
        rows.append([name, *(_fate(one) for one in (means, stock, plugin))])
    return markdown(["checkpoint", "what it means (embedded engine)", "stock SGLang", "with the plugin"], rows)


def _fate(found: Any) -> str:
    if isinstance(found, str):
        return "refused: the checkpoint is incomplete"
    if isinstance(found, float):
        return f"{found:.2f} tokens a pass"
    if "stopped" in found:
        return "stops, before any weight is loaded" if not found["loaded_weights"] else "stops with an AttributeError"
    served = f"{found['tokens_a_pass']:.2f} tokens a pass"
    return f"{served}, from a converted copy" if found["warned"] else f"{served}, says nothing"
