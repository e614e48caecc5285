"""Rows of several requests in one pass: packed for the linear layers, padded only inside the attention.

Shape letters: B requests in consecutive slots, T packed rows, R rows of the widest request, S cache places looked at,
A query heads, K key-value heads, G = A / K, D head size.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from eagle3_serving.engine.reach import Reach
from eagle3_serving.engine.scores import Scores


def visible(committed_B: Tensor, tail_BRT: Tensor, width: int) -> Tensor:
    """bool [B, R, width]: row r sees every place below `committed_B`, and place committed + t where `tail_BRT` says so."""
    batch, rows, tail = tail_BRT.shape
    offset_BS = torch.arange(width, device=tail_BRT.device) - committed_B[:, None]
    if tail == 0:
        return (offset_BS < 0)[:, None].expand(batch, rows, width)
    inside_BS = (offset_BS >= 0) & (offset_BS < tail)
    index_BRS = offset_BS.clamp(0, tail - 1)[:, None].expand(batch, rows, width)
    return (offset_BS < 0)[:, None] | (tail_BRT.gather(2, index_BRS) & inside_BS[:, None])


@dataclass
class RowPlan:
    """Where the rows of one pass stand. Request b owns slot first + b and writes its i-th row at place start + i.

    `flat_T`: where each packed row stands in [B, R] laid flat. `pad_BR` [B, R]: the packed row of each request's r-th row (0 where it has none), None where all have R rows.
    `mask_BRS`: what each row sees of its slot; None: everything. `position_T`: each row's position in its text, told where
    some layers do not see all of it; what was committed stands at its place.
    """

    slots: slice
    width: int
    length: int
    slot_T: Tensor
    place_T: Tensor
    flat_T: Tensor
    mask_BRS: Tensor | None
    pad_BR: Tensor | None = None
    position_T: Tensor | None = None
    _seen: dict[Reach | None, Tensor | None] = field(default_factory=dict)
    _bias: dict[tuple[torch.dtype, int, Reach | None], Tensor] = field(default_factory=dict)

    @property
    def batch(self) -> int:
        return int(self.slots.stop - self.slots.start)

    def padded(self, x_TX: Tensor) -> Tensor:
        """[T, ...] -> [B, R, ...]; what stands where a request has no row is of no meaning."""
        x = x_TX if self.pad_BR is None else x_TX[self.pad_BR.flatten()]
        return x.reshape(self.batch, self.width, *x.shape[1:])

    def packed(self, x_BRX: Tensor) -> Tensor:
        """[B, R, ...] -> [T, ...]."""
        x = x_BRX.flatten(0, 1)
        return x if self.pad_BR is None else x[self.flat_T]

    def look_back(self, window: int | None, stand_T: Tensor) -> None:
        """From now on a row that stands at place `stand_T` of its text sees `window` places, its own among them; None:
        all. What a draft has added to the cache stands past its text, and is never out of sight."""
        if window is None or self.length <= window:
            return
        stand_BR = self.padded(stand_T - window)
        near_BRS = torch.arange(self.length, device=stand_T.device) > stand_BR[..., None]
        self.mask_BRS = near_BRS if self.mask_BRS is None else self.mask_BRS & near_BRS
        self._seen.clear()
        self._bias.clear()

    def seen(self, reach: Reach | None = None) -> Tensor | None:
        """The mask of a layer of this reach, made once a pass; None: everything."""
        if reach is None or self.length <= reach.size:
            return self.mask_BRS
        if reach not in self._seen:
            assert self.position_T is not None, "a layer that does not see all needs positions"
            # a draft's rows stand at their depth, in places that only say their order
            key_BS = torch.arange(self.length, device=self.position_T.device).repeat(self.batch, 1)
            key_BS[self.slot_T - self.slots.start, self.place_T] = self.position_T
            near_BRS = reach.sees(self.padded(self.position_T), key_BS)
            self._seen[reach] = near_BRS if self.mask_BRS is None else self.mask_BRS & near_BRS
        return self._seen[reach]

    def bias(self, dtype: torch.dtype, groups: int, reach: Reach | None = None) -> Tensor | None:
        """The mask as an additive one [B, 1, G * R, S], made once a pass."""
        mask_BRS = self.seen(reach)
        if mask_BRS is None:
            return None
        key = (dtype, groups, None if mask_BRS is self.mask_BRS else reach)
        if key not in self._bias:
            bias_BRS = torch.zeros(mask_BRS.shape, dtype=dtype, device=mask_BRS.device)
            bias_BRS.masked_fill_(~mask_BRS, torch.finfo(dtype).min)
            self._bias[key] = bias_BRS.repeat(1, groups, 1)[:, None]
        return self._bias[key]


def plan_rows(
    first: int,
    starts: Sequence[int],
    counts: Sequence[int],
    device: torch.device,
    tail_BRT: Tensor | None = None,
    committed: Sequence[int] | None = None,
) -> RowPlan:
    """Rows for the slots from `first` on: `counts[b]` rows from place `starts[b]`.

    `tail_BRT` says what a row sees from place `committed[b]` (`starts[b]` unless told) on, as in `visible`; None: itself
    and everything before it.
    """
    batch, width = len(starts), max(counts)
    length = max(start + count for start, count in zip(starts, counts, strict=True))
    count_B = torch.tensor(counts, device=device)
    start_B = torch.tensor(starts, device=device)
    slot_T = torch.arange(batch, device=device).repeat_interleave(count_B, output_size=sum(counts))
    first_T = (count_B.cumsum(0) - count_B)[slot_T]
    row_T = torch.arange(len(slot_T), device=device) - first_T
    pad_BR = None
    if min(counts) != width:
        row_R = torch.arange(width, device=device)
        pad_BR = torch.where(row_R < count_B[:, None], (count_B.cumsum(0) - count_B)[:, None] + row_R, 0)
    mask_BRS = None
    if tail_BRT is not None:
        seen_B = start_B if committed is None else torch.tensor(committed, device=device)
        mask_BRS = visible(seen_B, tail_BRT, length)
    elif not (batch == 1 and width == 1):
        causal_BRR = torch.ones(width, width, dtype=torch.bool, device=device).tril().expand(batch, width, width)
        mask_BRS = visible(start_B, causal_BRR, length)
    return RowPlan(
        slots=slice(first, first + batch),
        width=width,
        length=length,
        slot_T=slot_T + first,
        place_T=start_B[slot_T] + row_T,
        flat_T=slot_T * width + row_T,
        mask_BRS=mask_BRS,
        pad_BR=pad_BR,
    )


class KVPool:
    """Key-value rows of every layer for a fixed number of slots. Places past a slot's length hold leftovers."""

    def __init__(self, layers: int, slots: int, capacity: int) -> None:
        self.slots, self.capacity = slots, capacity
        self.layers: list[tuple[Tensor, Tensor] | None] = [None] * layers

    def _buffers(self, layer: int, like_TKD: Tensor) -> tuple[Tensor, Tensor]:
        buffers = self.layers[layer]
        if buffers is None:
            # zeros, not what the allocator left: a masked NaN would still spoil the sum
            shape = (self.slots, like_TKD.shape[1], self.capacity, like_TKD.shape[2])
            buffers = self.layers[layer] = (like_TKD.new_zeros(shape), like_TKD.new_zeros(shape))
        return buffers

    def write(self, layer: int, k_TKD: Tensor, v_TKD: Tensor, plan: RowPlan) -> tuple[Tensor, Tensor]:
        """Write the rows' keys and values; returns the layer's buffers."""
        assert plan.length <= self.capacity, "the caller sized the pool too small"
        keys, values = self._buffers(layer, k_TKD)
        keys[plan.slot_T, :, plan.place_T] = k_TKD
        values[plan.slot_T, :, plan.place_T] = v_TKD
        return keys, values

    def attend(
        self,
        layer: int,
        q_TAD: Tensor,
        k_TKD: Tensor,
        v_TKD: Tensor,
        plan: RowPlan,
        scale: float | None = None,
        scores: Scores | None = None,
    ) -> Tensor:
        """Write the rows' keys and values, attend over the slots. Returns [T, A, D]. `scores`: what the layer does beyond plain
        attention over all that is before a row."""
        keys, values = self.write(layer, k_TKD, v_TKD, plan)
        scores = scores or Scores()
        if not scores.plain:
            keys_BSKD, values_BSKD = (x[plan.slots, :, : plan.length].transpose(1, 2) for x in (keys, values))
            seen_BRS = plan.seen(scores.reach)
            out_BRAD = scores.attend(plan.padded(q_TAD), keys_BSKD, values_BSKD, seen_BRS, scale)
            return plan.packed(out_BRAD)
        heads, groups = k_TKD.shape[1], q_TAD.shape[1] // k_TKD.shape[1]
        # the query heads of one key head become rows: no copy of the keys
        q_BRKGD = plan.padded(q_TAD).unflatten(2, (heads, groups))
        q_BKLD = q_BRKGD.permute(0, 2, 3, 1, 4).flatten(2, 3)
        out_BKLD = F.scaled_dot_product_attention(
            q_BKLD,
            keys[plan.slots, :, : plan.length],
            values[plan.slots, :, : plan.length],
            attn_mask=plan.bias(q_TAD.dtype, groups, scores.reach),
            scale=scale,
        )
        out_BRKGD = out_BKLD.unflatten(2, (groups, plan.width)).permute(0, 3, 1, 2, 4)
        return plan.packed(out_BRKGD.flatten(2, 3))

    @torch.inference_mode()
    def move(self, source_BD: Tensor, destination_BD: Tensor) -> None:
        """In slots 0, 1, ... copy row `source_BD` to `destination_BD`; -1 copies nothing."""
        slot_B1 = torch.arange(len(source_BD), device=source_BD.device)[:, None]
        # place 0 onto itself is the nothing that keeps shapes fixed
        source_BD, destination_BD = source_BD.clamp(min=0), destination_BD.clamp(min=0)
        for buffers in self.layers:
            for buffer in buffers or ():
                buffer[slot_B1, :, destination_BD] = buffer[slot_B1, :, source_BD]

    @torch.inference_mode()
    def copy_slot(self, source: int, destination: int, length: int) -> None:
        """The first `length` rows of one slot onto another."""
        for buffers in self.layers:
            for buffer in buffers or ():
                buffer[destination, :, :length] = buffer[source, :, :length]
