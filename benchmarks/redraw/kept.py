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
    vllm, sglang = (raw.table(f"prefix-load-{engine}")["sides"] for engine in ("vllm", "sglang"))
    ours, tree = vllm["our chain of 3"]["shared"], sglang["our tree 3,4,6"]["shared"]
    return (
        f"No: of conversations over shared texts vLLM with trees finds {rates[0]} of the prompts' tokens again, as plain vLLM does ({rates[1]}), where its own "
        f"chain gives a block of each prefix back and finds {rates[2]}; every answer is plain decoding's. Of a load that is mostly shared prefixes our chain of 3 serves "
        f"{ours['to_own']:.2f}x the tokens a second of vLLM's own, and a tree on SGLang {tree['to_own']:.2f}x those of SGLang's own chain."
    )


@text("prefix-load")
def load() -> str:
    """Ours beside the engine's own chain, where prefixes are shared and where they are not."""
    rows = []
    for engine in ("vllm", "sglang"):
        for name, kinds in raw.table(f"prefix-load-{engine}")["sides"].items():
            if any(said["differing"] for said in kinds.values()):
                raise ValueError(f"an answer of {name} differs")
            shared, apart = kinds["shared"], kinds["apart"]
            ratios = [
                f"{said['to_own']:.2f}x ({said['to_own_spread'][0]:.2f}-{said['to_own_spread'][1]:.2f})"
                for said in (shared, apart)
            ]
            label = name if "own" in name else f"{name}, {'vLLM V1' if engine == 'vllm' else 'SGLang'}"
            rows.append([label, f"{100 * shared['hit_rate']:.1f}%", f"{shared['tokens_per_second']:.1f}", *ratios])
    return markdown(["side", "hit rate, shared", "tokens/s, shared", "to the engine's own, shared", "apart"], rows)


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
