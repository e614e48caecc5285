"""Tree attention on the CPU: the prefix gathered from its pages, one dense attention over all requests at once.

Shape letters: B requests, R tree rows, S keys looked at, A query heads, K key-value heads, G = A / K, D head size, N pages
of a request, U places of a page, X places moved.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from eagle3_vllm.attention.gathered import attend_gathered
from eagle3_vllm.compat import CPUAttentionBackend, CPUAttentionBackendImpl


def pages(kv_cache: Tensor, head_dim: int) -> tuple[Tensor, Tensor]:
    """Views of keys [pages, K, D, U] and values [pages, K, U, D]: vLLM's "vec" layout keeps keys transposed."""
    count, heads, places, _ = kv_cache.shape
    both = kv_cache.view(count, heads, places * 2, head_dim)
    keys = both[:, :, :places]
    strides = keys.stride(0), keys.stride(1), places, 1
    return keys.as_strided((count, heads, head_dim, places), strides, keys.storage_offset()), both[:, :, places:]


class CpuPrefix:
    """The pages of every request, gathered once for as many attentions over them as are wanted."""

    def __init__(self, layer: Any, table_BN: Tensor, prefix_B: Tensor, longest: int, window: int | None = None) -> None:
        self.scale: float = layer.impl.scale
        keys, values = pages(layer.kv_cache, layer.head_size)
        blocks_BN = table_BN[:, : max(1, -(-longest // values.shape[2]))].long()
        # past a request's own rows there are leftovers, which no mask shows
        self.keys_BKSD = keys[blocks_BN].permute(0, 2, 1, 4, 3).flatten(2, 3)[:, :, :longest]
        self.values_BKSD = values[blocks_BN].permute(0, 2, 1, 3, 4).flatten(2, 3)[:, :, :longest]
        self.place_S = torch.arange(longest, device=prefix_B.device)
        self.seen_BS = self.place_S < prefix_B[:, None]
        self.lowest_B1 = None if window is None else prefix_B[:, None] - window

    def attend(
        self, q_BRAD: Tensor, k_BSKD: Tensor, v_BSKD: Tensor, mask_BRS: Tensor, past: int | Tensor = 0
    ) -> Tensor:
        """As `paged.Prefix` has it; `past` also [B, R], of each row."""
        keys_BKSD = torch.cat([self.keys_BKSD, k_BSKD.transpose(1, 2)], dim=2)
        values_BKSD = torch.cat([self.values_BKSD, v_BSKD.transpose(1, 2)], dim=2)
        seen_BRS = self.seen_BS[:, None].expand(-1, mask_BRS.shape[1], -1)
        if self.lowest_B1 is not None:
            seen_BRS = seen_BRS & (self.place_S > (self.lowest_B1 + past)[..., None])
        seen_BRS = torch.cat([seen_BRS, mask_BRS], dim=2)
        groups = q_BRAD.shape[2] // keys_BKSD.shape[1]
        # the query heads of one key head become rows: no copy of the keys
        q_BKLD = q_BRAD.unflatten(2, (-1, groups)).permute(0, 2, 3, 1, 4).flatten(2, 3)
        mask_B1LS = seen_BRS.repeat(1, groups, 1)[:, None]
        out_BKLD = F.scaled_dot_product_attention(q_BKLD, keys_BKSD, values_BKSD, attn_mask=mask_B1LS, scale=self.scale)
        return out_BKLD.unflatten(2, (groups, -1)).permute(0, 3, 1, 2, 4).flatten(2, 3)


def move_rows(layer: Any, source_X: Tensor, destination_X: Tensor) -> None:
    """Copy the keys and values in the places `source_X` to `destination_X`, all read before any is written."""
    keys, values = pages(layer.kv_cache, layer.head_size)
    places = values.shape[2]
    page, place = source_X // places, source_X % places
    key_XKD, value_XKD = keys[page, :, :, place], values[page, :, place]
    page, place = destination_X // places, destination_X % places
    keys[page, :, :, place] = key_XKD
    values[page, :, place] = value_XKD


class TreeCPUAttentionImpl(CPUAttentionBackendImpl):
    """vLLM's own, and after it the rows of trees once more, under their masks."""

    def forward(
        self,
        layer: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        kv_cache: Tensor,
        attn_metadata: Any,
        output: Tensor,
        output_scale: Tensor | None = None,
        output_block_scale: Tensor | None = None,
    ) -> Tensor:
        super().forward(layer, query, key, value, kv_cache, attn_metadata, output, output_scale, output_block_scale)
        rows = getattr(attn_metadata, "eagle3_rows", None)
        if rows is not None:
            window = None if self.sliding_window < 0 else self.sliding_window
            prefix = CpuPrefix(layer, attn_metadata.block_table, rows.trees.prefix_B, rows.longest, window)
            sizes = self.num_heads, self.head_size
            attend_gathered(prefix, rows, query, key, value, output, *sizes, windowed=window is not None)
        return output


class TreeCPUAttentionBackend(CPUAttentionBackend):
    @staticmethod
    def get_impl_cls() -> type[TreeCPUAttentionImpl]:
        return TreeCPUAttentionImpl
