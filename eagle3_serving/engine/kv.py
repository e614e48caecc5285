"""Key-value rows of one attention layer in a buffer allocated once: append, cut back, move accepted rows.

Shape letters: B requests, K key-value heads, S rows of the buffer, L new rows, D head size.
"""

from torch import Tensor


class KVRows:
    """Rows [0, length) are in use. The buffer is made at the first append, when shapes and device are known."""

    def __init__(self, capacity: int) -> None:
        self.capacity, self.length = capacity, 0
        self.kv_BKSD: tuple[Tensor, Tensor] | None = None

    def append(self, keys_BKLD: Tensor, values_BKLD: Tensor) -> tuple[Tensor, Tensor]:
        """Write L rows after the last one; keys and values [B, K, length, D] of all rows in use."""
        batch, heads, rows, size = keys_BKLD.shape
        if self.kv_BKSD is None:
            shape = (batch, heads, self.capacity, size)
            self.kv_BKSD = keys_BKLD.new_empty(shape), values_BKLD.new_empty(shape)
        assert self.length + rows <= self.capacity, "the caller sized the cache too small"
        start, self.length = self.length, self.length + rows
        keys, values = self.kv_BKSD
        keys[:, :, start : self.length] = keys_BKLD
        values[:, :, start : self.length] = values_BKLD
        return keys[:, :, : self.length], values[:, :, : self.length]

    def keep(self, start: int, rows_L: Tensor | None, count: int) -> None:
        """Cut back to `start` + `count` rows; those from `start` on are `start + rows_L` (None: already in place)."""
        if self.kv_BKSD is not None and rows_L is not None:
            for buffer in self.kv_BKSD:
                buffer[:, :, start : start + count] = buffer[:, :, start : self.length].index_select(2, rows_L)
        self.length = start + count
