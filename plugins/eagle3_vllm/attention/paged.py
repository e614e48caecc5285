"""Attention of rows over their request's pages and over one another, on whichever device.

Shape letters: B requests, R rows, S rows of the tail, A query heads, K key-value heads, D head size, N pages of a
request, G KV groups, T rows of the pass, D depths in what is moved, X places moved.
"""

from typing import Any, Protocol

import torch
from torch import Tensor

from eagle3_vllm.attention.layout import pages
from eagle3_vllm.kernels.moves import KVTable, move


class Prefix(Protocol):
    """The first `prefix_B` places of every request's pages in one layer."""

    def attend(self, q_BRAD: Tensor, k_BSKD: Tensor, v_BSKD: Tensor, mask_BRS: Tensor, past: int = 0) -> Tensor:
        """[B, R, A, D]: every row over the prefix of its request, and of the tail over what `mask_BRS` shows. Rows stand
        `past` places behind the prefix: that matters where there is a window, of whose places their own is the last."""


def prefix_of(layer: Any, table_BN: Tensor, prefix_B: Tensor, longest: int, window: int | None = None) -> Prefix:
    """`layer` is vLLM's `Attention`; no prefix is above `longest`. `window`: places that a row looks back on, None: all."""
    if layer.kv_cache.is_cuda:
        return layer.impl.tree_prefix(layer, table_BN, prefix_B, longest, window)
    from eagle3_vllm.attention.cpu import CpuPrefix

    return CpuPrefix(layer, table_BN, prefix_B, longest, window)


class Moves:
    """Moves accepted keys and values in all layers of the target. Made when the KV caches are there, which must outlive it."""

    def __init__(self, config: Any, kv_cache_config: Any) -> None:
        known = config.compilation_config.static_forward_context
        layers = [
            (group, known[name])
            for group, part in enumerate(kv_cache_config.kv_cache_groups)
            for name in part.layer_names
            if not getattr(known[name], "is_draft_layer", False)
        ]
        self.on_cpu: list[tuple[int, Any]] = []
        if layers[0][1].kv_cache.is_cuda:
            views = [(group, view) for group, layer in layers for view in pages(layer.kv_cache, layer.head_size)]
            self.table = KVTable.of(views)
        else:
            self.on_cpu = layers

    def __call__(self, slots_GT: Tensor, rows_BD: Tensor, root_B: Tensor) -> None:
        """`slots_GT` the slot mapping of the pass, `rows_BD` accepted tree rows, -1 past them, `root_B` the roots' rows."""
        if not self.on_cpu:
            move(self.table, slots_GT, rows_BD, root_B)
            return
        from eagle3_vllm.attention.cpu import move_rows

        # where nothing was accepted the root's row moves to its own place
        depth_D = torch.arange(1, rows_BD.shape[1] + 1, device=rows_BD.device)
        source_X = (root_B[:, None] + rows_BD.clamp(min=0)).flatten()
        destination_X = (root_B[:, None] + torch.where(rows_BD >= 0, depth_D, 0)).flatten()
        for group, layer in self.on_cpu:
            move_rows(layer, slots_GT[group][source_X], slots_GT[group][destination_X])
