"""Attention of rows over their request's pages and over one another, on whichever device.

Shape letters: B requests, R rows, S rows of the tail, A query heads, K key-value heads, D head size, N pages of a
request, X places moved.
"""

from typing import Any, Protocol

from torch import Tensor


class Prefix(Protocol):
    """The first `prefix_B` places of every request's pages in one layer."""

    def attend(self, q_BRAD: Tensor, k_BSKD: Tensor, v_BSKD: Tensor, mask_BRS: Tensor) -> Tensor:
        """[B, R, A, D]: every row over the whole prefix of its request, and of the tail over what `mask_BRS` shows."""


def prefix_of(layer: Any, table_BN: Tensor, prefix_B: Tensor, longest: int) -> Prefix:
    """`layer` is vLLM's `Attention`; no prefix is above `longest`."""
    if layer.kv_cache.is_cuda:
        return layer.impl.tree_prefix(layer, table_BN, prefix_B, longest)
    from eagle3_vllm.attention.cpu import CpuPrefix

    return CpuPrefix(layer, table_BN, prefix_B, longest)


def move_rows(layer: Any, source_X: Tensor, destination_X: Tensor) -> None:
    """Copy the keys and values in the places `source_X` to `destination_X`, all read before any is written."""
    if layer.kv_cache.is_cuda:
        from eagle3_vllm.attention import cuda

        cuda.move_rows(layer, source_X, destination_X)
    else:
        from eagle3_vllm.attention import cpu

        cpu.move_rows(layer, source_X, destination_X)
