"""Model Runner V2's model state with trees: their rows and positions, and the sampler."""

from typing import Any

import torch
from torch import Tensor

from eagle3_vllm.compat import AttentionCGSupport, CUDAGraphMode, InputBatch, NewRequestData, Sampler
from eagle3_vllm.fallback import chain_reason
from eagle3_vllm.noise import share_noise
from eagle3_vllm.trees import PassRows, Trees
from eagle3_vllm.verify import TreeSampler


class TreeModelState:
    """Goes before vLLM's own class of model state; `trees` is set right after it is made."""

    trees: Trees
    foreign_processors = False  # whether someone else's logits processors run: what they look back over is not known
    plans: Any = None  # of attention over whole passes of trees, made when the layers are known
    vllm_config: Any
    device: torch.device

    def get_additional_cg_support(self) -> tuple[Any, str]:
        """Trees stand in full CUDA graphs where all requests of a batch have one of the same size."""
        return AttentionCGSupport.UNIFORM_BATCH, "eagle3 trees"

    def add_request(self, req_index: int, new_req_data: NewRequestData) -> None:
        super().add_request(req_index, new_req_data)  # type: ignore[misc]
        reason = chain_reason(new_req_data.sampling_params)
        if reason is None and self.foreign_processors:
            reason = "logits_processor"
        if reason is not None:
            self.trees.tally.report_fallback("request", reason)
        self.trees.forget(req_index, reason is not None)

    def prepare_attn(
        self,
        input_batch: InputBatch,
        cudagraph_mode: Any,
        block_tables: Any,
        slot_mappings: Tensor,
        attn_groups: Any,
        kv_cache_config: Any,
        for_capture: bool = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Positions are written here too, in place: KV slots were computed before, from the rows' own order."""
        metadata: dict[str, Any] = super().prepare_attn(  # type: ignore[misc]
            input_batch,
            cudagraph_mode,
            block_tables,
            slot_mappings,
            attn_groups,
            kv_cache_config,
            for_capture=for_capture,
            **kwargs,
        )
        rows = self.trees.begin(input_batch, for_capture or cudagraph_mode == CUDAGraphMode.FULL, for_capture)
        for value in metadata.values():
            value.eagle3_rows = rows
        for table_BN, group in zip(block_tables, kv_cache_config.kv_cache_groups, strict=True):
            for name in group.layer_names:
                if name in metadata:
                    metadata[name].eagle3_table = table_BN  # not every backend's metadata has one
        if rows is not None and rows.whole and self.device.type == "cuda":
            self._attend_whole(rows, metadata, block_tables, kv_cache_config)
        return metadata

    def _attend_whole(self, rows: PassRows, metadata: dict[str, Any], block_tables: Any, kv_cache_config: Any) -> None:
        """A pass of trees alone: attention over buffers that keep their places."""
        from eagle3_vllm.attention.uniform import Plans

        trees = self.trees
        if self.plans is None:
            layers = self.vllm_config.compilation_config.static_forward_context.values()
            target = next(x for x in layers if hasattr(x, "impl") and not getattr(x, "is_draft_layer", False))
            self.plans = Plans(
                trees.attention_way(type(target.impl)),
                target.num_heads,
                target.num_kv_heads,
                target.head_size,
                self.vllm_config.model_config.dtype,
                trees.max_model_len,
                self.device,
                trees.passes(),
            )
        for place, group in enumerate(kv_cache_config.kv_cache_groups):
            table_BN = block_tables[place]
            told = self.plans.rows(rows.trees.mask_BRR, rows.trees.prefix_B, table_BN, rows.starts_B1, trees.ragged)
            for name in group.layer_names:
                if name in metadata:
                    metadata[name].eagle3_rows = told

    def custom_sampler(self, sampler: Sampler) -> tuple[Sampler, TreeSampler]:
        self.foreign_processors = any(not type(p).__module__.startswith("vllm.") for p in sampler.logits_processors)
        share_noise(sampler, self.trees)
        return sampler, TreeSampler(sampler, self.vllm_config.speculative_config, self.device, self.trees)
