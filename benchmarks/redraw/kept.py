"""What is found again of earlier requests' texts."""

from benchmarks.redraw import raw
from benchmarks.redraw.catalogue import markdown, text

TREES, CHAIN, PLAIN = "trees of 16, V2", "vLLM's own chain of 3, V2", "plain, V1"
FIGURES = ("hits", "recomputed", "tokens_a_pass", "steps")


@text("answer-prefix-cache")
def answer() -> str:
    sides = raw.table("vllm-prefix")["sides"]
    if any(side["differing"] for side in sides.values()) or sides[TREES]["hits"] != sides[PLAIN]["hits"]:
        raise ValueError("an answer differs, or something is not found again: the sentence would be untrue")
    rates = [f"{100 * sides[name]['hit_rate']:.1f}%" for name in (TREES, PLAIN, CHAIN)]
    return (
        f"No: of conversations over shared texts vLLM with trees finds {rates[0]} of the prompts' tokens again, as plain vLLM does ({rates[1]}), where its own "
        f"chain gives a block of each prefix back and finds {rates[2]}; every answer is plain decoding's."
    )


@text("prefix-cache")
def table() -> str:
    report = raw.table("vllm-prefix")
    rows = [
        [name, f"{100 * side['hit_rate']:.1f}%", *(side[figure] for figure in FIGURES)]
        for name, side in report["sides"].items()
    ]
    return markdown(
        [
            "side",
            "hit rate",
            "tokens found again",
            "prompts' tokens computed",
            "tokens a pass",
            "steps",
        ],
        rows,
    )
