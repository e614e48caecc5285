"""What an H100 said, at three visits."""

from typing import NamedTuple

from benchmarks.redraw import raw
from benchmarks.redraw.catalogue import markdown, picture, text
from eagle3_serving.plotting import PLAIN, Line, canvas, line, places, png

# law's accepted length (best child 0.8, siblings 0.75 of the rest): `python -m benchmarks.gpu`'s default, for these shapes
LENGTHS = {"chain of 3": 2.95, "depth 8": 4.99, "same tree": 4.99, "depth 5": 4.386}
NOW = "our tree of 16 (depth 5, top-k 4), in CUDA graphs"
STEPS = {
    "plain": ("vllm", "B plain"),
    "vLLM's own chain of 3, our drafter, full graphs": ("vllm", "B chain 3"),
    "our tree of 16 (depth 8, top-k 10), before CUDA graphs": ("vllm", "B tree 16"),
    "prototype: the same tree in CUDA graphs": ("vllm-prototype", "B tree 16 proto"),
    "plain, third visit": ("third-vllm", "plain"),
    NOW: ("third-vllm", "tree-16"),
}
IN_FLIGHT = (1, 4, 16, 64)


class Step(NamedTuple):
    """Milliseconds."""

    median: float
    p10: float
    p90: float


def _steps(name: str) -> dict[int, Step]:
    file, engine = STEPS[name]
    rows = raw.lines(f"h100/{file}")
    if file.startswith("third"):
        found = [row for row in rows if row.get("key", "").startswith(f"8B shape/{engine}/at ") and "round" in row]
        return {row["in_flight"]: Step(row["step_ms"], row["step_ms_p10"], row["step_ms_p90"]) for row in found}
    found = [row for row in rows if row["engine"] == engine and "ms_median" in row]
    return {row["flight"]: Step(row["ms_median"], row["p10"], row["p90"]) for row in found}


def _profile(name: str) -> tuple[float, float, float]:
    """Launches, copies and stream waits of a step at one in flight."""
    file, engine = STEPS[name]
    rows = raw.lines(f"h100/{file}")
    if file.startswith("third"):
        row = next(r for r in rows if r.get("key") == f"8B shape/{engine}/detail at 1")
        return row["launches"], row["memcpys"], row["syncs"]
    found = next(r for r in rows if (r["engine"], r.get("part"), r.get("flight")) == (engine, "profile", 1))
    waits = found["syncs_per_step"]
    return found["cuda_launches_per_step"], waits["cudaMemcpyAsync"], waits.get("cudaStreamSynchronize", 0.0)


def _simulated(name: str) -> dict[int, float]:
    """Speed over the plain decoding of the same visit, by the law's accepted length."""
    length = next(length for words, length in LENGTHS.items() if words in name)
    plain = _steps("plain, third visit" if name == NOW else "plain")
    return {n: length * plain[n].median / step.median for n, step in _steps(name).items()}


@text("h100-steps")
def steps() -> str:
    rows: list[list[str]] = []
    for name in STEPS:
        launches, copies, waits = _profile(name)
        marks = [f"{launches:,.0f}", f"{copies:.0f}", f"{waits:.1f}" if waits else "0"]
        found = _steps(name)
        cells = [name, *(f"{found[n].median:.2f}" for n in IN_FLIGHT), *marks]
        rows.append([f"**{cell}**" for cell in cells] if name == NOW else cells)
    for name in STEPS:
        if "plain" in name:
            continue
        gain = _simulated(name)
        cells = [f"SIMULATED, x plain: {name}", *(f"{gain[n]:.2f}" for n in IN_FLIGHT), "", "", ""]
        rows.append([f"**{cell}**" if cell else "" for cell in cells] if name == NOW else cells)
    return markdown(["ms a step, in flight", *IN_FLIGHT, "launches", "copies", "stream waits"], rows)


@picture("h100-steps.png")
def steps_png() -> bytes:
    figure, axes = canvas("One H100, vLLM 0.32, shape of Llama-3.1-8B: a step", size=(5.4, 4.4))
    for number, name in enumerate(name for name in STEPS if name != "plain, third visit"):
        found = _steps(name)
        x, y = range(len(IN_FLIGHT)), [found[n].median for n in IN_FLIGHT]
        low, high = ([getattr(found[n], side) for n in IN_FLIGHT] for side in ("p10", "p90"))
        if name == "plain":
            axes[0].plot(x, y, color=PLAIN, linestyle="--", marker=".", label="plain decoding")
        else:
            short = name.replace("full graphs", "graphs")
            line(axes[0], Line(short, x, y, low, high), number - 1, ours=name == NOW)
    places(axes[0], IN_FLIGHT)
    axes[0].set(xlabel="requests in flight", ylabel="milliseconds a step (p10 to p90)", ylim=(0, None))
    return png(figure, columns=1)


@text("answer-h100")
def answer() -> str:
    plain, now, before = (_steps(name) for name in ("plain, third visit", NOW, list(STEPS)[2]))
    gain, chain = _simulated(NOW), _simulated(list(STEPS)[1])
    return (
        f"Wherever answers were read it was right (those of a tree in vLLM's CUDA graphs were not yet), and in vLLM a tree of 16 takes {now[1].median:.1f} ms a step at 1 in flight and {now[16].median:.1f} at 16 where plain decoding takes "
        f"{plain[1].median:.1f} and {plain[16].median:.1f} ({before[1].median:.1f} and {before[16].median:.1f} before it stood in CUDA graphs): with simulated acceptance "
        f"{gain[1]:.2f} and {gain[16]:.2f} times plain decoding, where vLLM's own chain is at {chain[1]:.2f} and {chain[16]:.2f}. At 64 in flight a smaller tree or none is right; "
        "choosing by load did not start there, which is mended and has not run since. SGLang's steps that draft nothing are slow at 64."
    )


@text("h100-real")
def real() -> str:
    """SmolLM2-135M with the drafter that shipped then: tokens a second, and answers that differ from plain vLLM's."""
    rows = [
        row
        for row in raw.lines("h100/vllm")
        if row.get("set") == "A" and row.get("flight") in (1, 8) and "tokens_per_s" in row
    ]
    names = {
        "A plain": "plain",
        "A chain 3": "vLLM's own chain of 3",
        "A tree 16": "our tree of 16",
        "A tree 60": "our tree of 60",
    }
    made = []
    for engine, name in names.items():
        one, eight = (next(r for r in rows if (r["engine"], r["flight"]) == (engine, n)) for n in (1, 8))
        lengths = (
            " / ".join(f"{r['tokens_per_request_step']:.2f}" for r in (one, eight))
            if "tokens_per_request_step" in one
            else "1"
        )
        differ = (
            " / ".join(str(r["against_plain_same_flight"]["differing"]) for r in (one, eight))
            if engine != "A plain"
            else ""
        )
        made.append([name, f"{one['tokens_per_s']:,.0f}", f"{eight['tokens_per_s']:,.0f}", lengths, differ])
    return markdown(
        [
            "SmolLM2-135M, bf16, 40 prompts",
            "tokens/s, 1 in flight",
            "8 in flight",
            "tokens a pass, 1 / 8",
            "answers that differ, of 40, 1 / 8",
        ],
        made,
    )


@text("h100-sglang")
def sglang() -> str:
    names = {
        "l8b-plain": "8B shape, plain",
        "l8b-fixed": "8B shape, our worker, one tree 3,4,8, CUDA graphs, nothing accepted",
        "plain": "SmolLM2, plain",
        "own": "SmolLM2, SGLang's own tree 3,4,8",
    }
    rows = [row for row in raw.lines("h100/sglang") if "tokens_s" in row]
    made = []
    for engine, name in names.items():
        cells = []
        for n in (1, 8):
            row = next(r for r in rows if (r["engine"], r["in_flight"]) == (engine, n))
            passes = row["verify_steps"] or row["tokens"]
            step = 1000 * row["seconds"] / passes * n
            cells.append(
                f"{row['tokens_s']:,.1f} ({step:.1f})" if engine.startswith("l8b") else f"{row['tokens_s']:,.1f}"
            )
        length = next(r for r in rows if r["engine"] == engine)["accepted_length"]
        made.append([name, *cells, f"{length:.2f}" if length else "1"])
    return markdown(["tokens/s (ms a step, prefill included)", "1 in flight", "8 in flight", "tokens a pass"], made)


SECOND = {
    ("vllm", "plain"): "vLLM, plain",
    ("vllm", "vllm-chain-3"): "vLLM, its own chain of 3",
    ("sglang", "plain"): "SGLang, plain",
    ("sglang", "own:3:4:8"): "SGLang, its own tree 3,4,8",
    ("sglang", "3:4:8"): "SGLang, our worker, tree 3,4,8",
    ("sglang", "auto"): "SGLang, our worker, the load chooses",
}


@text("h100-second")
def second() -> str:
    """SmolLM2-135M with the drafter that ships, one request in flight."""
    made = []
    for (engine, contender), name in SECOND.items():
        rows = {row["key"]: row for row in raw.lines(f"h100/second-{engine}") if "key" in row}
        row = rows[f"real/{contender}/at 1/round 0"]
        told = rows.get(f"real/{contender}/answers at 1", {})
        gap = told.get("largest_gap")
        differ = f"{told['differing']} of {told['answers']}" if told else ""
        start = rows[f"real/{contender}/start"]["start_s"]
        figures = f"{row['step_ms']:.2f}", f"{row['measured_accepted_length']:.2f}", f"{row['tokens_per_second']:,.0f}"
        made.append([name, *figures, differ, "" if gap is None else f"{gap:.2f}", f"{start:.0f}"])
    return markdown(
        ["1 in flight", "ms a step", "tokens a pass", "tokens/s", "answers that differ", "largest gap", "start, s"],
        made,
    )


@text("h100-third-sglang")
def third_sglang() -> str:
    """8B shape, SGLang: what plain steps take, and by our worker's own clock the trees' steps and graphs."""
    rows = {row["key"]: row for row in raw.lines("h100/third-sglang") if "key" in row}
    made = []
    for contender, shape, name in (
        ("auto", [0, 4, 1], "our worker, nothing drafted"),
        ("3:4:8", [3, 4, 8], "our worker, tree 3,4,8"),
        ("auto", [5, 4, 12], "our worker, tree 5,4,12"),
    ):
        told = rows[f"8B shape/{contender}/costs"]
        served, graphs = ({b: ms for b, s, ms in told[key] if s == shape} for key in ("ms_served", "ms_of_graphs"))
        made.append(
            [
                name,
                *(f"{served[n]:.2f}" if n in served else "" for n in (1, 8, 64)),
                *(f"{graphs[n]:.2f}" for n in (1, 8, 64)),
            ]
        )
    plain = [rows.get(f"8B shape/plain/at {n}/round 0") for n in (1, 8, 64)]
    first = ["plain SGLang", *("" if row is None else f"{row['step_ms']:.2f}" for row in plain), "", "", ""]
    heads = ["ms a step, in flight", 1, 8, 64, "graphs alone: 1", "8", "64"]
    return markdown(heads, [first, *made])


@text("h100-curve")
def curve() -> str:
    rows = {(row["setting"], row["batch"]): row for row in raw.lines("h100/curve") if "setting" in row}
    made = []
    for setting in ("chain-3", "tree-16", "tree-60", "auto"):
        cells = []
        for batch in (1, 8, 64):
            row, plain = rows[setting, batch], rows["plain", batch]
            clock = row["tokens_per_second"] / plain["tokens_per_second"]
            if "draft_kernels_ms" not in row:
                cells.append(f"**{clock:.2f}**")
                continue
            graphs = (
                row["accepted_length"]
                * plain["verify_kernels_ms"]
                / (row["draft_kernels_ms"] + row["verify_kernels_ms"])
            )
            cells.append(f"{clock:.2f} / {graphs:.2f}")
        made.append([setting, *cells])
    return markdown(["SIMULATED acceptance, over plain, in flight", 1, 8, 64], made)


@text("h100-attention")
def attention() -> str:
    rows = {row["key"]: row for row in raw.lines("h100/attention") if "key" in row}
    made = []
    for row in rows.values():
        if not row["key"].startswith("best-"):
            continue
        shape = row["key"].removeprefix("best-")
        batch, nodes, prefix = shape.split("-")
        ways = (f"{rows[f'{way}-{shape}']['us']:,.1f}" for way in ("split-triton", "flashinfer-mask", "masked"))
        made.append([f"{batch} x {prefix}, {nodes}", f"{row['floor_us']:.1f}", *ways, f"{row['share']:.2f}"])
    return markdown(
        [
            "batch x prefix, nodes",
            "floor, µs",
            "split-triton",
            "FlashInfer's mask",
            "SDPA under the mask",
            "floor / best",
        ],
        made,
    )
