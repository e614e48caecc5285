"""Measure what a step costs on this machine, through the very functions that serve it.

Shape letters: B requests, N draft nodes.
"""

import contextlib
import hashlib
import platform
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from tqdm import tqdm

from eagle3_serving.drafter import Drafter
from eagle3_serving.engine.batch import Batch
from eagle3_serving.engine.embedded import EmbeddedEngine
from eagle3_serving.engine.options import DecodeOptions
from eagle3_serving.engine.speculate import Speculator
from eagle3_serving.engine.target import Target
from eagle3_serving.errors import InputError
from eagle3_serving.targets.cache import cache_directory
from eagle3_serving.tree import Draft, select, select_over_batch
from eagle3_serving.tree.budget import CostModel, Curve

BATCHES = (1, 2, 4, 8, 16, 32)
NODES = (1, 2, 3, 5, 8, 12, 16, 24, 32, 60)  # a request
MOST_ROWS = 320
WIDTHS = (1, 2, 4, 10)
TAKEN_IN = (1, 2, 5, 64, 256)  # rows a request: what a step accepts, and prompts
MOST_TAKEN_IN = 2048
DEPTH, TOP_K = 4, 10


def measure_costs(
    target: Target,
    drafter: Drafter,
    batches: Sequence[int] = BATCHES,
    context: int = 256,
    repeats: int = 5,
    progress: bool = True,
) -> CostModel:
    """The best of `repeats` timings at every batch size and number of rows, each request holding `context` rows."""
    target.watch(drafter.config.aux_layers)
    curves: dict[str, dict[int, tuple[tuple[float, float], ...]]] = {"target": {}, "step": {}, "absorb": {}}
    with tqdm(total=len(batches), desc="measuring costs", unit="batch size", disable=not progress) as bar:
        for batch in batches:
            measured = _Bench(target, drafter, batch, context).measure(repeats)
            for name, points in measured.items():
                curves[name][batch] = points
            bar.update()
    about = {
        "machine": platform.processor() or platform.machine(),
        "device": str(target.device),
        "dtype": str(target.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "context": context,
        "target_layers": target.num_layers,
        "target_hidden_size": target.hidden_size,
        "draft_vocab_size": drafter.config.draft_vocab_size,
    }
    return CostModel(Curve(curves["target"]), Curve(curves["step"]), Curve(curves["absorb"]), about)


class _Bench:
    """A batch of requests of made-up text; every timing leaves it as it was."""

    def __init__(self, target: Target, drafter: Drafter, batch: int, context: int) -> None:
        self.context, self.size = context, batch
        self.options = DecodeOptions(mode="tree", nodes=max(NODES), depth=DEPTH, top_k=TOP_K)
        self.batch = Batch(target, self.options, batch, context + max(*NODES, *TAKEN_IN) + 8)
        self.speculator = Speculator(drafter, self.batch, self.options, None)
        self.draft = self.speculator.draft
        generator = torch.Generator().manual_seed(0)
        prompt = torch.randint(0, target.vocab_size, (8,), generator=generator).tolist()
        self.batch.admit([(index, prompt) for index in range(batch)], self.speculator)
        self.draft.absorb(batch)
        self.reset()

    def reset(self) -> None:
        # rows that nothing was written to cost the same as others
        self.batch.lengths = [self.context] * self.size
        self.draft.committed = [self.context] * self.size
        self.draft.position = [self.context] * self.size
        self.draft.pending = [[] for _ in range(self.size)]

    def measure(self, repeats: int) -> dict[str, tuple[tuple[float, float], ...]]:
        """Curve -> (rows in all, seconds). Every size in turn, round after round, and the best of the rounds: a busy
        neighbour slows some rounds, and would bend a curve of medians taken one size after the other."""
        sizes = [n for n in NODES if self.size * (1 + n) <= max(MOST_ROWS, 3 * self.size)]
        jobs: dict[tuple[str, int], Callable[[], object]] = {("target", 1): self.speculator.plain}
        jobs |= {("target", 1 + n): self._verify(n) for n in sizes}
        taken_in = [rows for rows in TAKEN_IN if rows < 10 or self.size * rows <= MOST_TAKEN_IN]
        jobs |= {("absorb", rows): partial(self._absorb, rows) for rows in taken_in}
        jobs |= {("deep", width): partial(self._propose, DEPTH, width) for width in WIDTHS}
        jobs |= {("flat", width): partial(self._propose, 1, width) for width in WIDTHS}
        best = dict.fromkeys(jobs, float("inf"))
        for turn in range(repeats + 1):
            for key, job in jobs.items():
                seconds = self._timed(job)
                if turn:  # the first warms up
                    best[key] = min(best[key], seconds)
        step = {w: max((best["deep", w] - best["flat", w]) / (DEPTH - 1), 1e-6) for w in WIDTHS}
        curves = {name: {n: s for (kind, n), s in best.items() if kind == name} for name in ("target", "absorb")}
        return {
            name: tuple((float(self.size * n), s) for n, s in points.items())
            for name, points in {**curves, "step": step}.items()
        }

    def _verify(self, nodes: int) -> Callable[[], object]:
        draft = self._propose(DEPTH, TOP_K)
        tree = select(draft.candidates, nodes)
        counts = [1 + tree.parents_BN.shape[1]] * self.size
        return partial(self.speculator.verify, draft, tree, counts)

    def _absorb(self, rows: int) -> None:
        """With the first depth's expansion and the selection, which every draft pays."""
        config = self.draft.drafter.config
        width = config.num_aux * config.target_hidden_size
        aux_LF = torch.zeros(rows, width, dtype=self.draft.drafter.dtype, device=self.draft.device)
        tokens_L = torch.zeros(rows, dtype=torch.long, device=self.draft.device)
        for slot in range(self.size):
            self.draft.enqueue(slot, aux_LF, tokens_L)
        self.draft.absorb(self.size)
        select_over_batch(self._propose(1, 1).candidates, self.size, 8)

    def _propose(self, depth: int, width: int) -> Draft:
        return self.draft.propose(self.size, TOP_K, depth, self.speculator.grow(), lambda *_: width)

    def _timed(self, once: Callable[[], object]) -> float:
        on_device = self.batch.device.type == "cuda"
        self.reset()
        if on_device:
            torch.cuda.synchronize()
        begun = time.perf_counter()
        once()
        if on_device:
            torch.cuda.synchronize()
        seconds = time.perf_counter() - begun
        self.reset()
        return seconds


def costs_for(engine: EmbeddedEngine, directory: Path, batch: int, file: Path | None = None) -> CostModel:
    """The costs in `file`, or those kept from an earlier run on this machine, else measured now and kept.

    Raises InputError where `file` is not a profile.
    """
    assert engine.drafter is not None
    if file is not None:
        try:
            return CostModel.read(file)
        except ValueError as error:
            raise InputError(str(error)) from None
    target, config = engine.target, engine.drafter.config
    batches = tuple(b for b in BATCHES if b < 2 * batch)
    what = repr((str(directory.resolve()), config, target.dtype, target.device, torch.get_num_threads(), batches))
    kept = cache_directory() / "profiles" / f"{hashlib.sha256(what.encode()).hexdigest()[:16]}.json"
    if kept.exists():
        with contextlib.suppress(ValueError):
            return CostModel.read(kept)
    costs = measure_costs(target, engine.drafter, batches)
    costs.save(kept)
    return costs
