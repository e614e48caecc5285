"""What every backend for GPUs needs to attend over trees: goes before vLLM's own implementation of the layer."""

from typing import Any

from torch import Tensor

from eagle3_vllm.attention.gathered import attend_gathered
from eagle3_vllm.attention.paged import Prefix
from eagle3_vllm.attention.uniform import SplitPrefix, UniformRows, attend_uniform


class TreeRowsImpl:
    """vLLM's own for a batch in which not every row is a tree's, and the rows of trees under their masks.

    `eagle3_rows` of a layer's metadata says which rows they are: `UniformRows` where the pass has no others, as inside a CUDA
    graph, else `trees.PassRows`. Its pages are `eagle3_table` int32 [B, N], or the metadata's own `block_table`: FlashInfer's has none.
    """

    num_heads: int
    head_size: int
    scale: float

    def tree_prefix(
        self, layer: Any, table_BN: Tensor, prefix_B: Tensor, longest: int, window: int | None = None
    ) -> Prefix:
        """The prefix outside a graph."""
        return SplitPrefix(layer, table_BN, prefix_B, longest, window)

    def attend_uniform(
        self, query: Tensor, key: Tensor, value: Tensor, kv_cache: Tensor, rows: UniformRows, output: Tensor
    ) -> Tensor:
        return attend_uniform(query, key, value, kv_cache, rows, output, self.scale, self.head_size)

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
        if rows is not None and (output_scale is not None or output_block_scale is not None):
            raise NotImplementedError("trees with quantised attention output: serve with EAGLE3_MODE=chain")
        if isinstance(rows, UniformRows):
            return self.attend_uniform(query, key, value, kv_cache, rows, output)
        super().forward(  # type: ignore[misc]
            layer, query, key, value, kv_cache, attn_metadata, output, output_scale, output_block_scale
        )
        if rows is not None:
            table_BN = getattr(attn_metadata, "eagle3_table", None)
            table_BN = attn_metadata.block_table if table_BN is None else table_BN
            prefix = self.tree_prefix(layer, table_BN, rows.trees.prefix_B, rows.longest)
            attend_gathered(prefix, rows, query, key, value, output, self.num_heads, self.head_size)
        return output
