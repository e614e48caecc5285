"""Model Runner V2's model state with trees: positions, masks, the sampler, and where accepted keys and values go."""

from typing import Any

import torch
from torch import Tensor

from eagle3_vllm.attention.paged import move_rows
from eagle3_vllm.compat import AttentionCGSupport, InputBatch, NewRequestData, Sampler
from eagle3_vllm.fallback import chain_reason
from eagle3_vllm.trees import Trees
from eagle3_vllm.verify import TreeSampler


class TreeModelState:
    """Goes before vLLM's own class of model state; `trees` is set right after it is made."""

    trees: Trees
    vllm_config: Any
    device: torch.device

    def get_additional_cg_support(self) -> tuple[Any, str]:
        """Attention over trees stays outside CUDA graphs: they are cut at every attention (piecewise)."""
        return AttentionCGSupport.NEVER, "eagle3 trees"

    def add_request(self, req_index: int, new_req_data: NewRequestData) -> None:
        super().add_request(req_index, new_req_data)  # type: ignore[misc]
        reason = chain_reason(new_req_data.sampling_params)
        if reason is not None:
            self.trees.tally.fell_back("request", reason)
        self.trees.forget(req_index, reason is not None)

    def prepare_attn(
        self,
        input_batch: InputBatch,
        cudagraph_mode: Any,
        block_tables: Any,
        slot_mappings: Tensor,
        attn_groups: Any,
        kv_cache_config: Any,
        **kwargs: Any,
    ) -> dict[str, Any]:
        metadata: dict[str, Any] = super().prepare_attn(  # type: ignore[misc]
            input_batch, cudagraph_mode, block_tables, slot_mappings, attn_groups, kv_cache_config, **kwargs
        )
        self.kv_cache_config = kv_cache_config
        self.trees.begin(input_batch, slot_mappings)
        for value in metadata.values():
            value.eagle3_rows = self.trees.rows
        return metadata

    def prepare_inputs(self, input_batch: InputBatch, req_states: Any) -> dict[str, Any]:
        inputs: dict[str, Any] = super().prepare_inputs(input_batch, req_states)  # type: ignore[misc]
        rows = self.trees.rows
        if rows is not None:
            # in place: a CUDA graph reads this buffer. KV slots were computed before, from the rows' own order
            input_batch.positions[rows.index_BR] = rows.prefix_B[:, None] + rows.depth_BR
        return inputs

    def custom_sampler(self, sampler: Sampler) -> tuple[Sampler, TreeSampler]:
        return sampler, TreeSampler(sampler, self.vllm_config.speculative_config, self.device, self.trees)

    def postprocess_state(
        self, idx_mapping: Tensor, num_sampled: Tensor, num_computed_tokens: Tensor | None = None
    ) -> None:
        """The accepted path's keys and values move to where a text has them; the drafter writes its own anew."""
        super().postprocess_state(idx_mapping, num_sampled, num_computed_tokens)  # type: ignore[misc]
        if self.trees.accepted is None:
            return
        assert self.trees.slots is not None
        source_BD, destination_BD = self.trees.path_index()
        layers = self.vllm_config.compilation_config.static_forward_context
        for slots_T, group in zip(self.trees.slots, self.kv_cache_config.kv_cache_groups, strict=True):
            source_X, destination_X = slots_T[source_BD.flatten()], slots_T[destination_BD.flatten()]
            for name in group.layer_names:
                layer = layers[name]
                if not getattr(layer, "is_draft_layer", False):
                    move_rows(layer, source_X, destination_X)
