"""The target's KV cache behind transformers' Cache interface: preallocated, rolls back, moves accepted tree rows."""

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from eagle3_serving.engine.kv import KVRows


class TargetCacheLayer(CacheLayerMixin):  # type: ignore[misc, unused-ignore]
    """One layer; transformers calls `update` with the new rows and attends over what it returns."""

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.rows = KVRows(capacity)

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing: the buffer makes itself."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        return self.rows.append(key_states, value_states)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.rows.length + query_length, 0

    def get_seq_length(self) -> int:
        return self.rows.length

    def get_max_length(self) -> int:
        return self.rows.capacity


class TargetCache(Cache):  # type: ignore[misc, unused-ignore]
    def __init__(self, layers: int, capacity: int) -> None:
        super().__init__(layers=[TargetCacheLayer(capacity) for _ in range(layers)])

    @property
    def length(self) -> int:
        return int(self.layers[0].get_seq_length())

    @torch.inference_mode()  # the buffers were made in it
    def keep(self, start: int, rows: list[int]) -> None:
        """Keep only `rows` (counted from `start`, ascending) of those at `start` and after, at linear places."""
        in_place = rows == list(range(len(rows)))
        for layer in self.layers:
            kv: KVRows = layer.rows
            device = None if kv.kv_BKSD is None else kv.kv_BKSD[0].device
            kv.keep(start, None if in_place else torch.tensor(rows, device=device), len(rows))
