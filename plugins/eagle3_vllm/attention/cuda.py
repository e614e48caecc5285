"""Tree attention under vLLM's FLASH_ATTN: FlashAttention, which knows no masks, over the prefix and the tree's small dense
block merged in (the way "flash"), or our kernel over the same pages (the way "split"), as a pass's `UniformRows` say.

FlashAttention's way has run on an H100 under vLLM 0.32; of the split kernel its tests alone passed there.

Shape letters: B requests, R tree rows, T rows of a pass, S rows of a tail, A query heads, K key-value heads, D head size,
N pages of a request, P pages, U places of a page.
"""

from typing import Any

import torch
from torch import Tensor

from eagle3_vllm.attention.implementation import TreeRowsImpl
from eagle3_vllm.attention.layout import canonical, pages
from eagle3_vllm.attention.paged import Prefix
from eagle3_vllm.attention.tree_block import merged
from eagle3_vllm.attention.uniform import UniformRows, attend_uniform
from eagle3_vllm.compat import flash

FlashAttentionBackend: Any
FlashAttentionImpl: Any
FlashAttentionBackend, FlashAttentionImpl, flash_attn_varlen_func = flash()


def flash_over_prefix(
    impl: Any,
    q_TAD: Tensor,
    keys_PUKD: Tensor,
    values_PUKD: Tensor,
    table_BN: Tensor,
    prefix_B: Tensor,
    starts_B1: Tensor,
    width: int,
    longest: int,
) -> tuple[Tensor, Tensor]:
    """[T, A, D] and fp32 [A, T]: rows of requests over the first `prefix_B` places of their pages, all int32."""
    out_TAD, lse_AT = flash_attn_varlen_func(
        q=q_TAD,
        k=canonical(keys_PUKD),
        v=canonical(values_PUKD),
        cu_seqlens_q=starts_B1,
        max_seqlen_q=width,
        seqused_k=prefix_B,
        max_seqlen_k=longest,
        softmax_scale=impl.scale,
        causal=False,
        block_table=table_BN,
        return_softmax_lse=True,
        fa_version=impl.vllm_flash_attn_version,
    )
    return out_TAD, lse_AT


class FlashPrefix:
    def __init__(self, layer: Any, table_BN: Tensor, prefix_B: Tensor, longest: int) -> None:
        self.impl, self.longest = layer.impl, longest
        self.keys, self.values = pages(layer.kv_cache, layer.head_size)
        self.table_BN, self.prefix_B = table_BN.int(), prefix_B.int()

    def attend(self, q_BRAD: Tensor, k_BSKD: Tensor, v_BSKD: Tensor, mask_BRS: Tensor, past: int = 0) -> Tensor:
        batch, rows = q_BRAD.shape[:2]
        starts_B1 = torch.arange(batch + 1, dtype=torch.int32, device=q_BRAD.device) * rows
        q_TAD, at = q_BRAD.flatten(0, 1).contiguous(), (self.table_BN, self.prefix_B, starts_B1, rows, self.longest)
        out_TAD, lse_AT = flash_over_prefix(self.impl, q_TAD, self.keys, self.values, *at)
        prefix_BRAD, lse_BRA = out_TAD.unflatten(0, (batch, rows)), lse_AT.T.unflatten(0, (batch, rows))
        return merged(q_BRAD, k_BSKD, v_BSKD, mask_BRS, prefix_BRAD, lse_BRA, self.impl.scale, out=prefix_BRAD)


class TreeFlashAttentionImpl(TreeRowsImpl, FlashAttentionImpl):
    def tree_prefix(
        self, layer: Any, table_BN: Tensor, prefix_B: Tensor, longest: int, window: int | None = None
    ) -> Prefix:
        if window is not None:  # FlashAttention's slides from row to row, and a draft's rows stand at one place
            return super().tree_prefix(layer, table_BN, prefix_B, longest, window)
        return FlashPrefix(layer, table_BN, prefix_B, longest)

    def attend_uniform(
        self, query: Tensor, key: Tensor, value: Tensor, kv_cache: Tensor, rows: UniformRows, output: Tensor
    ) -> Tensor:
        def over_prefix(q_TAD: Tensor, keys: Tensor, values: Tensor, rows: UniformRows) -> tuple[Tensor, Tensor]:
            at = rows.table_BN, rows.prefix_B, rows.starts_B1, rows.mask_BRR.shape[1], rows.longest
            return flash_over_prefix(self, q_TAD, keys, values, *at)

        return attend_uniform(query, key, value, kv_cache, rows, output, self.scale, self.head_size, over_prefix)


class TreeFlashAttentionBackend(FlashAttentionBackend):
    @staticmethod
    def get_impl_cls() -> type[TreeFlashAttentionImpl]:
        return TreeFlashAttentionImpl
