"""Real vLLM: what a chain gives one request, and what a chain and a tree yield at equal verified tokens."""

from benchmarks.redraw import raw
from benchmarks.redraw.catalogue import markdown, picture, text, times
from benchmarks.redraw.lengths import FAMILIES
from eagle3_serving.plotting import Line, bars, canvas, line, places, plain_at_one, png

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
        raw.table(name)["speedup"]
        for name in ("vllm-fp32-chain2", "vllm-fp32-chain3", "demo-vllm-chain3", "vllm-overfit-fp32-chain4")
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
        rows.append(
            [name, f"**{times(made['speedup'])}**", f"{made['accepted_length']:.2f}", rate, same, made["repeats"]]
        )
    return markdown(
        ["setting", "over plain vLLM", "tokens a pass", "tokens/s, and plain's", "answers identical", "rounds"], rows
    )


@picture("vllm-one-request.png")
def one_request_png() -> bytes:
    figure, axes = canvas("vLLM, one request: speed by kind of text")
    for number, file in enumerate(("vllm-fp32-chain2", "vllm-fp32-chain3", "vllm-bf16-chain2")):
        found = raw.table(file)["families"]
        values = [found[name]["speedup"] for name in FAMILIES]
        bars(axes[0], values, number, 3, ONE_REQUEST[file], ours=file == "vllm-fp32-chain3")
    plain_at_one(axes[0])
    places(axes[0], list(FAMILIES))
    axes[0].set_ylabel("tokens/s (plain = 1)")
    return png(figure)


@text("vllm-equal-tokens")
def equal_tokens() -> str:
    verified = raw.table("vllm-equal-tokens")["verified"]
    return markdown(
        ["verified draft tokens a pass", *verified],
        [
            [who, *(f"{found[who]['tokens_per_pass']:.2f}" for found in verified.values())]
            for who in ("vLLM's own chain", "our tree")
        ],
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
