"""The embedded engine's tensor work as CUDA graphs: the target's pass, and a draft of fixed shape as a whole.

A graph replays fixed shapes over fixed tensors. The batch is rounded up to eighths of the slots, for a graph of every size
would be too many: the rows past it write to free slots. Places in the cache change from step to step, so they stand in tensors
that are filled before a replay; the cache is looked at up to a bucketed length, and the mask hides what lies beyond.
On a CPU the same code runs without graphs, so that its results can be held against the engine's own.

Shape letters: B requests, R rows of each, T = B * R, S cache places, K frontier nodes.
"""

import gc
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.timing import Captured
from eagle3_serving.drafter import Drafter
from eagle3_serving.engine import DraftSession, Target
from eagle3_serving.engine.rows import KVPool, RowPlan, visible
from eagle3_serving.engine.target import TargetOutput
from eagle3_serving.tree import Draft, Grow, Keep


def bucketed(length: int, bucket: int, capacity: int) -> int:
    """`length` rounded up to whole buckets, at most the capacity; bucket 0: always the capacity."""
    return capacity if bucket == 0 else min(math.ceil(length / bucket) * bucket, capacity)


@dataclass
class _Pass:
    """One shape's fixed tensors and its graph."""

    pool: KVPool
    tokens_T: Tensor
    positions_T: Tensor
    slot_T: Tensor
    place_T: Tensor
    flat_T: Tensor
    mask_BRS: Tensor
    captured: Captured[TargetOutput] | None = None

    @classmethod
    def make(cls, pool: KVPool, batch: int, width: int, length: int, device: torch.device) -> "_Pass":
        row_T = torch.arange(batch * width, device=device)
        mask_BRS = torch.zeros(batch, width, length, dtype=torch.bool, device=device)
        zeros = [torch.zeros_like(row_T) for _ in range(3)]
        return cls(pool, zeros[0], zeros[1], row_T // width, zeros[2], row_T, mask_BRS)

    def fill(self, tokens_T: Tensor, positions_T: Tensor, plan: RowPlan) -> None:
        """Rows of no request keep token and place 0 of a free slot, and see that place alone."""
        count, batch = len(tokens_T), plan.batch
        for fixed_T, given_T in (
            (self.tokens_T, tokens_T),
            (self.positions_T, positions_T),
            (self.place_T, plan.place_T),
        ):
            fixed_T[:count] = given_T
            fixed_T[count:] = 0
        self.mask_BRS.fill_(False)
        self.mask_BRS[:batch, :, : plan.length] = True if plan.mask_BRS is None else plan.mask_BRS
        self.mask_BRS[batch:, :, 0] = True

    def plan(self) -> RowPlan:
        """A fresh one each time: the additive mask that it keeps belongs to one pass."""
        batch, width, length = self.mask_BRS.shape
        return RowPlan(slice(0, batch), width, length, self.slot_T, self.place_T, self.flat_T, self.mask_BRS)


class GraphedTarget(Target):
    """A target whose passes of one shape are replays. Passes of unlike requests, prefills among them, run as they are."""

    def __init__(self, target: Target, graphs: bool = True, bucket: int = 0) -> None:
        self.__dict__.update(target.__dict__)
        self.graphs, self.bucket = graphs, bucket
        self.passes: dict[tuple[int, int, int, int], _Pass] = {}
        self.memory: Any = torch.cuda.graph_pool_handle() if self.device.type == "cuda" else None

    def drop(self) -> None:
        """Forget all graphs, and the caches they hold."""
        self.passes.clear()
        gc.collect()  # a pass and what it captured hold each other
        if self.memory is not None:
            # the allocator asserts that a pool which lost its last graph takes no other
            self.memory = torch.cuda.graph_pool_handle()
            torch.cuda.empty_cache()

    @torch.inference_mode()
    def forward(
        self,
        tokens_T: Tensor,
        positions_T: Tensor,
        pool: KVPool,
        plan: RowPlan,
        logits_rows: Tensor | None = None,
    ) -> TargetOutput:
        if plan.pad_BR is not None or logits_rows is not None or plan.slots.start != 0:
            return super().forward(tokens_T, positions_T, pool, plan, logits_rows)
        length = bucketed(plan.length, self.bucket, pool.capacity)
        batch = bucketed(plan.batch, pool.slots // 8 or 1, pool.slots)
        key = (id(pool), batch, plan.width, length)
        if (one := self.passes.get(key)) is None:
            self.passes[key] = one = _Pass.make(pool, batch, plan.width, length, self.device)
        one.fill(tokens_T, positions_T, plan)
        if one.captured is None:  # filled first: warming up writes to the cache
            one.captured = self._capture(one)
        output, count = one.captured.replay(), len(tokens_T)
        # kept by the drafter beyond the next replay
        aux_TF = None if output.aux_TF is None else output.aux_TF[:count].clone()
        return TargetOutput(output.logits_TV[:count], aux_TF)

    def _capture(self, one: _Pass) -> Captured[TargetOutput]:
        def compute() -> TargetOutput:
            return super(GraphedTarget, self).forward(one.tokens_T, one.positions_T, one.pool, one.plan())

        return Captured(compute, self.device, self.graphs, self.memory)


class GraphedDraft(DraftSession):
    """A draft session whose `propose` of one shape is one replay, as long as `fixed`: `keep` must not hang on scores, and
    what `grow` draws comes from the device's default generator."""

    def __init__(
        self, drafter: Drafter, slots: int, capacity: int, graphs: bool = True, bucket: int = 0, fixed: bool = True
    ) -> None:
        super().__init__(drafter, slots, capacity)
        self.graphs, self.bucket, self.fixed = graphs, bucket, fixed
        self.committed_B = torch.zeros(slots, dtype=torch.long, device=self.device)
        self.position_B = torch.zeros(slots, dtype=torch.long, device=self.device)
        self.drafts: dict[tuple[int, int, int, int], Captured[Draft]] = {}
        self._length = 0  # of the cache, inside a captured draft

    @torch.inference_mode()
    def propose(self, batch: int, top_k: int, depth: int, grow: Grow, keep: Keep) -> Draft:
        if not self.fixed:
            return super().propose(batch, top_k, depth, grow, keep)
        most = max(self.committed[:batch]) + (depth - 1) * top_k
        length = bucketed(most, self.bucket, self.pool.capacity)
        self.committed_B[:batch] = torch.tensor(self.committed[:batch])
        self.position_B[:batch] = torch.tensor(self.position[:batch])

        def compute() -> Draft:
            self._length = length
            try:
                return super(GraphedDraft, self).propose(batch, top_k, depth, grow, keep)
            finally:
                self._length = 0

        key = (batch, top_k, depth, length)
        if key not in self.drafts:
            self.drafts[key] = Captured(compute, self.device, self.graphs)
        return self.drafts[key].replay()

    def place(self, batch: int, width: int, mask_BKT: Tensor) -> tuple[RowPlan, Tensor]:
        if self._length == 0:
            return super().place(batch, width, mask_BKT)
        slot_T = torch.arange(batch * width, device=self.device) // width
        row_T = torch.arange(batch * width, device=self.device) % width
        committed_B = self.committed_B[:batch]
        plan = RowPlan(
            slots=slice(0, batch),
            width=width,
            length=self._length,
            slot_T=slot_T,
            place_T=committed_B[slot_T] + mask_BKT.shape[2] - width + row_T,
            flat_T=torch.arange(batch * width, device=self.device),
            mask_BRS=visible(committed_B, mask_BKT, self._length),
        )
        return plan, self.position_B[:batch]
