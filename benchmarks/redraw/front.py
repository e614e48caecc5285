"""The front page: one picture, a table of four lines."""

from benchmarks.redraw import raw
from benchmarks.redraw.by_load import at, sglang_curves, slashes
from benchmarks.redraw.catalogue import markdown, picture, text
from benchmarks.redraw.lengths import drawn_length
from eagle3_serving.bench.plots import speed_by_load
from eagle3_serving.bench.summary import loads
from eagle3_serving.plotting import Line, canvas, png

OURS, OWN, ADAPTIVE = "eagle3-serving, auto", "engine's own (chain of 3; tree 5,4,8)", "SGLang's own, adaptive"


@picture("speed-by-load.png")
def picture_of_both() -> bytes:
    """Both real engines: plain decoding, their own EAGLE-3, and ours."""
    title = "SmolLM2-135M, fp32, two CPU cores"
    figure, axes = canvas(title, panels=2, size=(6.4, 3.9), across=True, sharey=True)
    points = raw.bench("vllm")[1]
    curves = []
    for mode, label in (("auto", OURS), ("own-chain-3", OWN)):
        of = [at(points, mode, load) for load in loads(points)]
        low, high = zip(*(point.ratio_range for point in of), strict=True)
        curves.append(Line(label, range(len(of)), [point.ratio for point in of], low, high))
    speed_by_load(axes[0], curves, loads(points), ours=[OURS])
    named = {"auto": OURS, "own:5:4:8": OWN, "own-adaptive": ADAPTIVE}
    figures = raw.table("sglang-sweep")["figures"]
    curves, batches = sglang_curves({name: figures[name] for name in named}, named)
    speed_by_load(axes[1], curves, batches, ours=[OURS])
    for axis, name in zip(axes, ("stock vLLM 0.32", "stock SGLang 0.5.23"), strict=True):
        axis.set_title(name, loc="left", fontsize=11)
    axes[1].set_ylabel("")
    return png(figure, columns=2)


@text("front-table")
def table() -> str:
    points, bounds = raw.bench("vllm")[1], raw.table("sglang-sweep")["bounds"]
    vllm = slashes([at(points, "auto", load).ratio for load in loads(points)])
    sglang = slashes([found["to_plain"] for found in bounds.values()])
    own, tree = (found["tokens_per_pass"] for found in raw.table("vllm-equal-tokens")["verified"]["16"].values())
    ours, theirs = raw.table("train-public")["runs"]
    broken = raw.table("sglang-broken")["layer ids where vLLM reads them"]
    stock, mended = (broken[who]["tokens_a_pass"] for who in ("stock SGLang", "with the plugin"))
    kept = raw.table("prefix-load-vllm")["sides"]["our chain of 3"]["shared"]["to_own"]
    means = broken["what the checkpoint means (embedded engine)"]
    if round(means, 2) != round(mended, 2) or round(means, 2) == round(stock, 2):
        raise ValueError("the converted copy is not what the checkpoint means: the line would be untrue")
    coupled, top = (drawn_length("tree", proposals) for proposals in ("coupled", "top"))
    in_flight = slashes(loads(points), "")
    results = "benchmarks/results"
    return markdown(
        ["over", "you get", f"measured (at {in_flight} in flight)"],
        [
            [
                "stock vLLM",
                "draft length by load from a measured profile, none where none pays; dynamic trees with `EAGLE3_MODE=tree`, "
                "which at a temperature guess the draw itself; the prefix cache kept whole under speculation",
                f"[{vllm}]({results}/vllm-by-load.md); [{tree:.2f} tokens a pass against {own:.2f}]({results}/vllm-trees.md) at 16 verified, "
                f"[at T = 1 {coupled:.2f} against {top:.2f} on the embedded engine]({results}/accepted-length.md); "
                f"[{kept:.2f}x its own chain on shared prefixes]({results}/prefix-cache.md)",
            ],
            [
                "stock SGLang",
                "the tree of each step chosen by load and by what is accepted, none among them",
                f"[{sglang}]({results}/sglang-by-load.md)",
            ],
            [
                "either",
                "drafters of every dialect, checked or converted before weights load; at T > 0 the target's law on a CPU too; `eagle3 tune` says whether to turn it on",
                f"[layer ids of another dialect: SGLang ignores them in silence, ours serves what is meant]({results}/checkpoints.md)",
            ],
            [
                "speculators",
                "a trainer that resumes bit for bit, and ends checked and measured",
                f"[{ours['tokens_per_second']:.0f} tokens/s against {theirs['tokens_per_second']:.0f}, {ours['tree']:.2f} tokens a pass against "
                f"{theirs['tree']:.2f}]({results}/trainers-compared.md) on two CPU cores, one seed",
            ],
        ],
    )
