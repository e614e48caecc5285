"""Step 5: speculation's gain by batch size at the size of an 8B model, with SIMULATED ACCEPTANCE (see `simulate.py`).

Target and drafter have the shape of Llama-3.1-8B and of its published drafter, their weights are random; whether a token
is accepted is drawn, everything else is really done. Two ratios to plain decoding: `ratio` of the wall clock, the
engine's host work and its waits for the device counted; `kernel_ratio` of the graphs alone (one draft, one verify pass
against one plain pass), what an engine that hides all host work would get. Plain decoding is a replayed graph too.
"""

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.graphs import GraphedDraft, GraphedTarget
from benchmarks.gpu.probe import floors
from benchmarks.gpu.settings import Settings
from benchmarks.gpu.shapes import LLAMA_8B, TINY, Shape, random_drafter, random_target
from benchmarks.gpu.simulate import SHAPES, WIDTHS, AcceptanceLaw, Record, SimulatedSpeculator, expected_lengths
from benchmarks.gpu.sink import Sink
from benchmarks.gpu.timing import measure, synchronize
from eagle3_serving.drafter import Drafter
from eagle3_serving.engine import DecodeOptions
from eagle3_serving.engine.batch import Batch
from eagle3_serving.engine.policy import Experience
from eagle3_serving.engine.profile import measure_costs
from eagle3_serving.tree.budget import CostModel

SETTINGS = ("plain", *SHAPES, "auto")
# EAGLE-3 (arXiv 2503.01840), throughput over plain decoding by batch size; real acceptance, other prompts
PAPER = {
    "SGLang, H100, chain of 3": {2: 1.81, 4: 1.82, 8: 1.62, 16: 1.48, 24: 1.39, 32: 1.32, 48: 1.38, 56: 1.34, 64: 1.38},
    "vLLM, RTX 3090, chain of 2": {2: 1.75, 4: 1.68, 8: 1.58, 16: 1.49, 24: 1.42, 32: 1.36, 48: 1.21, 56: 1.01},
}


def options_of(name: str, tokens: int) -> DecodeOptions:
    if name == "plain":
        return DecodeOptions(tokens, "plain", eos_ids=())
    if name == "auto":
        return DecodeOptions(tokens, "auto", nodes=60, depth=8, top_k=10, eos_ids=())
    shape = SHAPES[name]
    if shape.top_k == 1:
        return DecodeOptions(tokens, "chain", k=shape.depth, eos_ids=())
    return DecodeOptions(tokens, "tree", nodes=shape.nodes, depth=shape.depth, top_k=shape.top_k, eos_ids=())


class World:
    """The pair of models, and what is told of a run."""

    def __init__(self, settings: Settings) -> None:
        self.settings, self.device = settings, settings.torch_device
        self.shape: Shape = TINY if settings.tiny else LLAMA_8B
        target = random_target(self.shape, self.device, settings.dtype)
        self.target = GraphedTarget(target, settings.graphs)
        self.drafter: Drafter = random_drafter(self.shape, self.device, settings.dtype)
        self.target.watch(self.drafter.config.aux_layers)
        self.law = AcceptanceLaw(settings.rate, settings.siblings)
        self.context = min(settings.context, 32) if settings.tiny else settings.context
        self.tokens = min(settings.tokens, 12) if settings.tiny else settings.tokens
        self.batches = tuple(b for b in settings.batches if b <= 2) if settings.tiny else settings.batches

    def start(
        self, name: str, batch: int, costs: CostModel | None = None, experience: Experience | None = None
    ) -> tuple[Batch, SimulatedSpeculator | None]:
        """`batch` requests of made-up text, prefilled; the caches hold what a run of `tokens` steps' worth can need."""
        options = options_of(name, self.tokens)
        most = 0 if name == "plain" else max(*WIDTHS, options.shape.nodes + 1) + options.shape.depth
        capacity = self.context + 2 * self.tokens + most + 1
        requests = Batch(self.target, options, batch, -(-capacity // 64) * 64)
        speculator = None
        if name != "plain":
            settings = self.settings
            speculator = SimulatedSpeculator(
                self.drafter, requests, options, self.law, costs, experience, settings.graphs
            )
        generator = torch.Generator().manual_seed(self.settings.seed)
        prompt = torch.randint(0, self.shape.vocab, (8,), generator=generator).tolist()
        requests.admit([(index, prompt) for index in range(batch)], speculator)
        if speculator is not None:
            speculator.draft.absorb(batch)
        self.rewind(requests, speculator)
        return requests, speculator

    def rewind(self, requests: Batch, speculator: SimulatedSpeculator | None) -> None:
        """All requests back to the context's length; rows that nothing was written to cost the same as others."""
        batch = requests.size
        requests.lengths = [self.context] * batch
        if speculator is not None:
            speculator.draft.committed[:batch] = [self.context] * batch
            speculator.draft.position[:batch] = [self.context] * batch
            speculator.draft.pending[:batch] = [[] for _ in range(batch)]

    def decode(
        self, requests: Batch, speculator: SimulatedSpeculator | None, steps: int
    ) -> tuple[int, int, int, float]:
        """At most `steps` steps, fewer where a cache is full: steps, tokens, nodes and seconds."""
        # auto's passes are rounded up to a width that has a graph
        widest = 1 if speculator is None else max(*WIDTHS, requests.options.shape.nodes + 1)
        done = tokens = nodes = 0
        synchronize(self.device)
        begun = time.perf_counter()
        while done < steps and max(requests.lengths) + widest < requests.capacity:
            said = requests.plain() if speculator is None else speculator.step(self.tokens * requests.size)
            done += 1
            tokens += sum(len(step.token_ids) for step in said)
            nodes += sum(step.nodes for step in said)
        synchronize(self.device)
        return done, tokens, nodes, time.perf_counter() - begun


def run(settings: Settings, sink: Sink, out: Path) -> None:
    if not sink.has("simulated"):
        law = AcceptanceLaw(settings.rate, settings.siblings)
        sink.add("simulated", law=asdict(law), accepted_lengths=expected_lengths(law))
    world = World(settings)
    bandwidth = floors(settings, out)
    todo = [b for b in world.batches if not all(sink.has(f"{name}-{b}") for name in SETTINGS)]
    if not todo:
        return
    experience = Experience()
    for batch in todo:
        costs = measure_costs(
            world.target, world.drafter, (batch,), world.context, repeats=1 if settings.tiny else 2, progress=False
        )
        world.target.drop()
        for name in SETTINGS:
            if not sink.has(f"{name}-{batch}"):
                sink.add(f"{name}-{batch}", simulated=name != "plain", **_one(world, name, batch, costs, experience))
            world.target.drop()
    weights = world.shape.weights(torch.finfo(settings.dtype).bits // 8)
    if not sink.has("floor"):
        sink.add("floor", weights_bytes=weights, weights_ms=round(bandwidth.seconds(weights) * 1e3, 3))


def _one(world: World, name: str, batch: int, costs: CostModel, experience: Experience) -> dict[str, Any]:
    requests, speculator = world.start(name, batch, costs, experience)
    rounds = 1 if world.settings.tiny else 3
    warm = 14 if name == "auto" and not world.settings.tiny else 2
    world.decode(requests, speculator, warm)
    totals, rates = [0, 0, 0, 0.0], []
    if speculator is not None:
        speculator.policy.record = Record()
    for _ in range(rounds):
        world.rewind(requests, speculator)
        part = world.decode(requests, speculator, world.tokens if name == "plain" else max(4, world.tokens // 2))
        totals = [a + b for a, b in zip(totals, part, strict=True)]
        rates.append(part[1] / part[3])
    steps, tokens, nodes, seconds = totals
    figures: dict[str, Any] = {
        "batch": batch,
        "setting": name,
        "tokens_per_second": round(tokens / seconds, 1),
        "tokens_per_second_range": [round(min(rates), 1), round(max(rates), 1)],
        "accepted_length": round(tokens / steps / batch, 3),
        "nodes": round(nodes / steps / batch, 2),
        "step_ms": round(seconds / steps * 1e3, 3),
        "verify_kernels_ms": kernels_ms(world, requests),
        "graph": [p.captured.why or "captured" for p in world.target.passes.values() if p.captured],
    }
    if speculator is not None:
        record = speculator.policy.record
        figures["draft_ms"] = round(record.draft_s / max(steps, 1) * 1e3, 3)
        figures["verify_ms"] = round(record.verify_s / max(steps, 1) * 1e3, 3)
        draft = speculator.draft
        assert isinstance(draft, GraphedDraft)
        if draft.drafts:
            captured = list(draft.drafts.values())[-1]
            figures["draft_kernels_ms"] = round(measure(captured.replay, world.device).median / 1e3, 4)
    kernels = (figures["verify_kernels_ms"] or 0.0) + figures.get("draft_kernels_ms", 0.0)
    # what of a step is neither of the two graphs: the host, its waits, and the small work between them
    figures["other_share"] = round(max(0.0, 1 - kernels / figures["step_ms"]), 3) if name != "auto" else None
    return figures


def kernels_ms(world: World, requests: Batch) -> float | None:
    """One replay of the last pass's graph, in milliseconds."""
    passes = [one for one in world.target.passes.values() if one.pool is requests.pool and one.captured]
    if not passes:
        return None
    captured = passes[-1].captured
    assert captured is not None
    with torch.inference_mode():
        return round(measure(captured.replay, world.device).median / 1e3, 4)


def ratios(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every setting beside plain decoding of the same batch size, and `best`: the best setting of each, plain included."""
    plain = {row["batch"]: row for row in rows if row.get("setting") == "plain"}
    made = []
    for row in rows:
        base = plain.get(row.get("batch", -1))
        if base is None:
            continue
        ratio = row["tokens_per_second"] / base["tokens_per_second"]
        kernels = None
        if row.get("draft_kernels_ms") and row["verify_kernels_ms"] and base["verify_kernels_ms"]:
            step = row["draft_kernels_ms"] + row["verify_kernels_ms"]
            kernels = round(row["accepted_length"] * base["verify_kernels_ms"] / step, 3)
        made.append({**row, "ratio": round(ratio, 3), "kernel_ratio": kernels})
    return made


def summarise(rows: list[dict[str, Any]]) -> list[list[str]]:
    made = {(row["batch"], row["setting"]): row for row in ratios(rows)}
    batches = sorted({batch for batch, _ in made})
    table = [["SIMULATED acceptance: speed over plain", *[str(batch) for batch in batches]]]
    for name in SETTINGS:
        cells = [made.get((batch, name)) for batch in batches]
        if name == "plain":
            table.append(["plain, tokens/s", *["-" if c is None else f"{c['tokens_per_second']:.0f}" for c in cells]])
            continue
        table.append([f"{name}, wall clock", *["-" if c is None else f"{c['ratio']:.2f}" for c in cells]])
        if name != "auto":
            kernels = ["-" if c is None or c["kernel_ratio"] is None else f"{c['kernel_ratio']:.2f}" for c in cells]
            table.append([f"{name}, kernels alone", *kernels])
            shares = ["-" if c is None or c["other_share"] is None else f"{c['other_share']:.0%}" for c in cells]
            table.append([f"{name}, share of a step in neither graph", *shares])
            table.append(
                [f"{name}, accepted length", *["-" if c is None else f"{c['accepted_length']:.2f}" for c in cells]]
            )
    best = [max((made[b, n]["ratio"], n) for n in SETTINGS if (b, n) in made) for b in batches]
    table.append(["best of all by wall clock", *[f"{ratio:.2f} {name}" for ratio, name in best]])
    for name, figures in PAPER.items():
        table.append(
            [f"the paper, real acceptance: {name}", *[f"{figures[b]:.2f}" if b in figures else "-" for b in batches]]
        )
    return table
