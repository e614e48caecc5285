"""Tree attention on the CPU: the prefix gathered from its pages, one dense attention over all requests at once.

Shape letters: B requests, R tree rows, P cache places, S keys looked at, A query heads, K key-value heads, G = A / K,
D head size, N pages of a request, U places of a page.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from eagle3_vllm.compat import CPUAttentionBackend, CPUAttentionBackendImpl


def pages(kv_cache: Tensor, head_dim: int) -> tuple[Tensor, Tensor]:
    """Views of keys [pages, K, D, U] and values [pages, K, U, D]: vLLM's "vec" layout keeps keys transposed."""
    count, heads, places, _ = kv_cache.shape
    both = kv_cache.view(count, heads, places * 2, head_dim)
    keys = both[:, :, :places]
    strides = keys.stride(0), keys.stride(1), places, 1
    return keys.as_strided((count, heads, head_dim, places), strides, keys.storage_offset()), both[:, :, places:]


def read_prefix(kv_cache: Tensor, head_dim: int, table_BN: Tensor, longest: int) -> tuple[Tensor, Tensor]:
    """Keys and values [B, K, S, D] of the first `longest` places of every request; past its own they are leftovers."""
    keys, values = pages(kv_cache, head_dim)
    places = values.shape[2]
    blocks_BN = table_BN[:, : max(1, -(-longest // places))].long()
    keys_BKSD = keys[blocks_BN].permute(0, 2, 1, 4, 3).flatten(2, 3)
    values_BKSD = values[blocks_BN].permute(0, 2, 1, 3, 4).flatten(2, 3)
    return keys_BKSD[:, :, :longest], values_BKSD[:, :, :longest]


def move_rows(kv_cache: Tensor, head_dim: int, source_X: Tensor, destination_X: Tensor) -> None:
    """Copy the keys and values in the places `source_X` to `destination_X`, all read before any is written."""
    keys, values = pages(kv_cache, head_dim)
    places = values.shape[2]
    page, place = source_X // places, source_X % places
    key_XKD, value_XKD = keys[page, :, :, place], values[page, :, place]
    page, place = destination_X // places, destination_X % places
    keys[page, :, :, place] = key_XKD
    values[page, :, place] = value_XKD


def attend(
    q_BRAD: Tensor, prefix: tuple[Tensor, Tensor], k_BSKD: Tensor, v_BSKD: Tensor, mask_BRS: Tensor, scale: float
) -> Tensor:
    """[B, R, A, D]: over the prefix [B, K, S, D], then the tail rows [B, S, K, D]; `mask_BRS` covers both."""
    keys_BKSD = torch.cat([prefix[0], k_BSKD.transpose(1, 2)], dim=2)
    values_BKSD = torch.cat([prefix[1], v_BSKD.transpose(1, 2)], dim=2)
    groups = q_BRAD.shape[2] // keys_BKSD.shape[1]
    # the query heads of one key head become rows: no copy of the keys
    q_BKLD = q_BRAD.unflatten(2, (-1, groups)).permute(0, 2, 3, 1, 4).flatten(2, 3)
    mask_B1LS = mask_BRS.repeat(1, groups, 1)[:, None]
    out_BKLD = F.scaled_dot_product_attention(q_BKLD, keys_BKSD, values_BKSD, attn_mask=mask_B1LS, scale=scale)
    return out_BKLD.unflatten(2, (groups, -1)).permute(0, 3, 1, 2, 4).flatten(2, 3)


def with_prefix(prefix_B: Tensor, longest: int, tail_BRS: Tensor) -> Tensor:
    """What rows see [B, R, longest + S]: each request's own prefix, then of the tail what `tail_BRS` says."""
    seen_BS = torch.arange(longest, device=prefix_B.device) < prefix_B[:, None]
    return torch.cat([seen_BS[:, None].expand(-1, tail_BRS.shape[1], -1), tail_BRS], dim=2)


class TreeCPUAttentionImpl(CPUAttentionBackendImpl):  # type: ignore[misc]
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
        out: Tensor = super().forward(
            layer, query, key, value, kv_cache, attn_metadata, output, output_scale, output_block_scale
        )
        rows = getattr(attn_metadata, "eagle3_rows", None)
        if rows is None:
            return out
        heads, keys = (self.num_heads, self.head_size), (self.num_kv_heads, self.head_size)
        index_BR = rows.index_BR
        prefix = read_prefix(kv_cache, self.head_size, attn_metadata.block_table, rows.longest)
        mask_BRS = with_prefix(rows.prefix_B, rows.longest, rows.mask_BRR)
        tree_BRAD = attend(
            query.view(-1, *heads)[index_BR],
            prefix,
            key.view(-1, *keys)[index_BR],
            value.view(-1, *keys)[index_BR],
            mask_BRS,
            self.scale,
        )
        output.view(-1, *heads)[index_BR] = tree_BRAD.to(output.dtype)
        return out


class TreeCPUAttentionBackend(CPUAttentionBackend):  # type: ignore[misc]
    @staticmethod
    def get_impl_cls() -> type[TreeCPUAttentionImpl]:
        return TreeCPUAttentionImpl
