"""Tree attention on CUDA: FlashAttention over the prefix, which knows no masks, and the tree's small dense block merged in.

Written against FlashAttention's interface as vLLM calls it; the block's kernel is tested under Triton's interpreter. It has
not run on a GPU yet, and nothing here is measured.

Shape letters: B requests, R tree rows, T rows of a pass, S rows of a tail, A query heads, K key-value heads, D head size,
N pages of a request, X places moved.
"""

from typing import Any

import torch
from torch import Tensor

from eagle3_vllm.attention.tree_block import merged
from eagle3_vllm.compat import AttentionBackendEnum, VllmConfig, flash

FlashAttentionBackend: Any
FlashAttentionImpl: Any
FlashAttentionBackend, FlashAttentionImpl, flash_attn_varlen_func = flash()


def unsupported(config: VllmConfig) -> list[str]:
    """Why this server's attention cannot attend over trees."""
    backend = config.attention_config.backend
    if backend not in (None, AttentionBackendEnum.FLASH_ATTN):
        return [f"attention backend {backend.name}: only FLASH_ATTN is known"]
    if backend is None and torch.cuda.get_device_capability()[0] not in (8, 9):
        return ["a GPU on which vLLM's own choice is not FlashAttention; ask for --attention-backend FLASH_ATTN"]
    return []


def pages(kv_cache: Tensor, head_dim: int) -> tuple[Tensor, Tensor]:
    """Keys and values [pages, U, K, D] of FlashAttention's layout, as vLLM's own implementation takes them apart."""
    keys, values = kv_cache.transpose(1, 2).split(head_dim, dim=-1)
    return keys, values


class FlashPrefix:
    def __init__(self, layer: Any, table_BN: Tensor, prefix_B: Tensor, longest: int) -> None:
        self.impl, self.longest = layer.impl, longest
        self.keys, self.values = pages(layer.kv_cache, layer.head_size)
        self.table_BN, self.prefix_B = table_BN.int(), prefix_B.int()

    def attend(self, q_BRAD: Tensor, k_BSKD: Tensor, v_BSKD: Tensor, mask_BRS: Tensor) -> Tensor:
        batch, rows = q_BRAD.shape[:2]
        starts_B1 = torch.arange(batch + 1, dtype=torch.int32, device=q_BRAD.device) * rows
        out_TAD, lse_AT = flash_attn_varlen_func(
            q=q_BRAD.flatten(0, 1).contiguous(),
            k=self.keys,
            v=self.values,
            cu_seqlens_q=starts_B1,
            max_seqlen_q=rows,
            seqused_k=self.prefix_B,
            max_seqlen_k=self.longest,
            softmax_scale=self.impl.scale,
            causal=False,
            block_table=self.table_BN,
            return_softmax_lse=True,
            fa_version=self.impl.vllm_flash_attn_version,
        )
        lse_BRA = lse_AT.T.unflatten(0, (batch, rows))
        prefix_BRAD = out_TAD.unflatten(0, (batch, rows))
        return merged(q_BRAD, k_BSKD, v_BSKD, mask_BRS, prefix_BRAD, lse_BRA, self.impl.scale, out=prefix_BRAD)


def move_rows(layer: Any, source_X: Tensor, destination_X: Tensor) -> None:
    for rows in pages(layer.kv_cache, layer.head_size):
        places = rows.shape[1]
        moved_XKD = rows[source_X // places, source_X % places]
        rows[destination_X // places, destination_X % places] = moved_XKD


class TreeFlashAttentionImpl(FlashAttentionImpl):
    """vLLM's own for a batch in which not every row is a tree's, and the rows of trees under their masks."""

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
        rows = getattr(attn_metadata, "eagle3_rows", None)
        if rows is None or attn_metadata.num_actual_tokens != rows.index_BR.numel():
            super().forward(layer, query, key, value, kv_cache, attn_metadata, output, output_scale, output_block_scale)
        if rows is not None:
            prefix = FlashPrefix(layer, attn_metadata.block_table, rows.prefix_B, rows.longest)
            q_BRAD, k_BRKD, v_BRKD = (x.view(len(x), -1, self.head_size)[rows.index_BR] for x in (query, key, value))
            tree_BRAD = prefix.attend(q_BRAD, k_BRKD, v_BRKD, rows.mask_BRR)
            output.view(-1, self.num_heads, self.head_size)[rows.index_BR] = tree_BRAD
        return output


class TreeFlashAttentionBackend(FlashAttentionBackend):
    @staticmethod
    def get_impl_cls() -> type[TreeFlashAttentionImpl]:
        return TreeFlashAttentionImpl
