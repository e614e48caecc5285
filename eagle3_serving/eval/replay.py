"""A target played back from a recording: acceptance of any setting at the price of drafting alone.

The output is the same whatever is drafted, and so are the features: one recording serves them all. Drawn answers are played
back under the sampling that drew them, each in its place: what is drafted hangs on the noise then.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from eagle3_serving.engine.rows import KVPool, RowPlan
from eagle3_serving.engine.target import Target, TargetOutput
from eagle3_serving.train.data import Answer
from eagle3_serving.train.features import Extract, extract_features


class _Chosen:
    """Logits of which only the argmax is known."""

    def __init__(self, tokens_T: Tensor) -> None:
        self.tokens_T = tokens_T

    def argmax(self, dim: int) -> Tensor:
        return self.tokens_T


@dataclass
class _Record:
    tokens_L: Tensor
    aux_LF: Tensor


class _Places(KVPool):
    """No keys and values, only whose text stands in which slot."""

    def __init__(self, slots: int) -> None:
        super().__init__(0, slots, 1)
        self.records: list[_Record | None] = [None] * slots

    def move(self, source_BD: Tensor, destination_BD: Tensor) -> None:
        """Nothing to move."""

    def copy_slot(self, source: int, destination: int, length: int) -> None:
        self.records[destination] = self.records[source]


class RecordedTarget(Target):
    """Plays `answers` back; a prompt that was not recorded is a KeyError. No drawn proposals: those are judged by laws.

    `extract`: where features at `aux_layers` come from, a pass of the target unless told.
    """

    recorded = True

    def __init__(
        self, target: Target, aux_layers: Sequence[int], answers: Sequence[Answer], extract: Extract | None = None
    ) -> None:
        self.__dict__.update(target.__dict__)
        if extract is None:
            target.watch(aux_layers)
            extract = partial(extract_features, target)
        self.texts: dict[tuple[int, ...], _Record] = {}
        for answer in answers:
            features = extract([answer])
            self.texts[answer.prompt_ids] = _Record(features.tokens_BL[0], features.aux_BLF[0])

    def watch(self, aux_layers: Sequence[int]) -> None:
        """Watched since the recording."""

    def new_pool(self, slots: int, capacity: int) -> KVPool:
        return _Places(slots)

    def forward(
        self,
        tokens_T: Tensor,
        positions_T: Tensor,
        pool: KVPool,
        plan: RowPlan,
        logits_rows: Tensor | None = None,
    ) -> TargetOutput:
        """What the target said at these positions of the recorded texts; rows off the text get some token.

        Nothing off the text is ever accepted: its own token, or one above it, is not what the target said.
        """
        assert isinstance(pool, _Places)
        if logits_rows is not None:  # a prefill
            for slot in range(plan.slots.start, plan.slots.stop):
                pool.records[slot] = self.texts[tuple(tokens_T[plan.slot_T == slot].tolist())]
        said_T, aux = torch.zeros_like(tokens_T), []
        for slot in plan.slot_T.unique_consecutive().tolist():
            record = pool.records[slot]
            assert record is not None
            mine_T = plan.slot_T == slot
            position_T = positions_T[mine_T].clamp(max=len(record.tokens_L) - 1)
            said_T[mine_T] = record.tokens_L[(position_T + 1).clamp(max=len(record.tokens_L) - 1)]
            aux.append(record.aux_LF[position_T])
        said_T = said_T if logits_rows is None else said_T[logits_rows]
        return TargetOutput(cast(Any, _Chosen(said_T)), torch.cat(aux))
