"""Measure what a step costs on this machine, through the very functions that serve it.

Shape letters: B requests, N draft nodes.
"""

import contextlib
import hashlib
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from tqdm import tqdm

from eagle3_serving.drafter import Drafter
from eagle3_serving.engine.batch import Batch
from eagle3_serving.engine.draft import Draft
from eagle3_serving.engine.embedded import EmbeddedEngine
from eagle3_serving.engine.options import DecodeOptions
from eagle3_serving.engine.policy import FixedPolicy
from eagle3_serving.engine.speculate import Speculator
from eagle3_serving.engine.target import Target
from eagle3_serving.errors import InputError
from eagle3_serving.targets.cache import cache_directory
from eagle3_serving.tree import select, select_over_batch
from eagle3_serving.tree.budget import CostModel, Curve

BATCHES = (1, 2, 4, 8, 16, 32)
NODES = (1, 2, 3, 5, 8, 12, 16, 24, 32, 60)  # a request
MOST_ROWS = 320
WIDTHS = (1, 2, 4, 10)
DEPTH, TOP_K = 4, 10


def measure_costs(
    target: Target,
    drafter: Drafter,
    batches: Sequence[int] = BATCHES,
    context: int = 256,
    repeats: int = 5,
    progress: bool = True,
) -> CostModel:
    """Medians of `repeats` timings at every batch size and number of rows, each request holding `context` rows."""
    target.watch(drafter.config.aux_layers)
    verify: dict[int, list[tuple[float, float]]] = {}
    step: dict[int, list[tuple[float, float]]] = {}
    absorb: dict[int, list[tuple[float, float]]] = {}
    with tqdm(total=len(batches), desc="measuring costs", unit="batch size", disable=not progress) as bar:
        for batch in batches:
            bench = _Bench(target, drafter, batch, context, repeats)
            verify[batch] = [(batch, bench.plain())]
            # of like pace: a plain pass among the others, so that a slow minute hits both
            for nodes in NODES:
                if batch * (1 + nodes) <= max(MOST_ROWS, 3 * batch):
                    verify[batch].append((batch * (1 + nodes), bench.verify(nodes)))
            absorb[batch] = [(batch * rows, bench.absorb(rows)) for rows in (1, 2, 5)]
            step[batch] = [(batch * width, bench.draft_step(width)) for width in WIDTHS]
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
    target_curve, step_curve, absorb_curve = (
        Curve({b: tuple(points) for b, points in each.items()}) for each in (verify, step, absorb)
    )
    return CostModel(target_curve, step_curve, absorb_curve, about)


class _Bench:
    """A batch of requests of made-up text; every timing leaves it as it was."""

    def __init__(self, target: Target, drafter: Drafter, batch: int, context: int, repeats: int) -> None:
        self.repeats, self.context, self.size = repeats, context, batch
        self.options = DecodeOptions(mode="tree", nodes=max(NODES), depth=DEPTH, top_k=TOP_K)
        self.batch = Batch(target, self.options, batch, context + max(NODES) + 8)
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

    def plain(self) -> float:
        return self._median(self.speculator.plain)

    def verify(self, nodes: int) -> float:
        draft = self.draft.propose(
            self.size, TOP_K, DEPTH, self.speculator.grow(), FixedPolicy(self.options.shape).keep
        )
        tree = select(draft.candidates, nodes)
        counts = [1 + tree.parents_BN.shape[1]] * self.size
        return self._median(lambda: self.speculator.verify(draft, tree, counts))

    def absorb(self, rows: int) -> float:
        """With the first depth's expansion and the selection, which every draft pays."""
        width = self.draft.drafter.config.num_aux * self.draft.drafter.config.target_hidden_size
        aux_LF = torch.zeros(rows, width, dtype=self.draft.drafter.dtype, device=self.draft.device)
        tokens_L = torch.zeros(rows, dtype=torch.long, device=self.draft.device)

        def once() -> None:
            for slot in range(self.size):
                self.draft.note(slot, aux_LF, tokens_L)
            self.draft.absorb(self.size)
            select_over_batch(self._propose(1, 1).candidates, self.size, 8)

        return self._median(once)

    def draft_step(self, width: int) -> float:
        deep, flat = (self._median(partial(self._propose, depth, width)) for depth in (DEPTH, 1))
        return max((deep - flat) / (DEPTH - 1), 1e-6)

    def _propose(self, depth: int, width: int) -> Draft:
        return self.draft.propose(self.size, TOP_K, depth, self.speculator.grow(), lambda *_: width)

    def _median(self, once: Callable[[], object]) -> float:
        seconds = []
        for turn in range(self.repeats + 1):
            self.reset()
            if self.batch.device.type == "cuda":
                torch.cuda.synchronize()
            begun = time.perf_counter()
            once()
            if self.batch.device.type == "cuda":
                torch.cuda.synchronize()
            if turn:  # the first warms up
                seconds.append(time.perf_counter() - begun)
        self.reset()
        return statistics.median(seconds)


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
