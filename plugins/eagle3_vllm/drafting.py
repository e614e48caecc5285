"""Draft rows over the drafter's own paged KV: each sees its request's prefix, its ancestors among the draft, and itself.

The draft rows' keys and values never enter the pages: they are wanted for one draft only, and no slot is needed for them.

Shape letters: B requests, K frontier nodes, S draft rows so far, H draft hidden size, D head size, V draft vocabulary.
"""

from typing import Any

import torch
from torch import Tensor

from eagle3_vllm.architecture import Eagle3ServingForCausalLM
from eagle3_vllm.attention.paged import Prefix, prefix_of


class DraftRowsOverPages:
    """A `DraftRows` for one draft. `prefix_B` rows that each request has in the drafter's pages, none above `longest`."""

    def __init__(
        self,
        model: Eagle3ServingForCausalLM,
        block_tables: Any,
        kv_cache_config: Any,
        prefix_B: Tensor,
        slots_B: Tensor,
        longest: int,
    ) -> None:
        self.model, self.prefix_B = model, prefix_B
        self.prefixes: list[Prefix] = []
        layer: Any
        for layer in model.attention:
            group = _group_of(layer.layer_name, kv_cache_config)
            table_BN = block_tables.block_tables[group].gpu[slots_B]
            self.prefixes.append(prefix_of(layer, table_BN, prefix_B, longest))
        self.tails: list[tuple[Tensor, Tensor] | None] = [None] * len(self.prefixes)

    def __call__(self, draft_ids_BK: Tensor, state_BKH: Tensor, depth: int, mask_BKS: Tensor) -> tuple[Tensor, Tensor]:
        drafter = self.model.model
        position_BK = (self.prefix_B[:, None] + depth - 1).expand(draft_ids_BK.shape)

        def attend_over(layer: int, q_BKAD: Tensor, k_BKXD: Tensor, v_BKXD: Tensor) -> Tensor:
            before = self.tails[layer]
            if before is not None:
                k_BKXD, v_BKXD = torch.cat([before[0], k_BKXD], dim=1), torch.cat([before[1], v_BKXD], dim=1)
            self.tails[layer] = k_BKXD, v_BKXD
            return self.prefixes[layer].attend(q_BKAD, k_BKXD, v_BKXD, mask_BKS)

        tokens_BK = drafter.vocabulary.to_target(draft_ids_BK)
        step = drafter.step(tokens_BK, state_BKH, position_BK, attend_over)
        logits_TV = self.model.draft_logits(step.hidden_BLH.flatten(0, 1))
        return logits_TV.unflatten(0, draft_ids_BK.shape), step.feedback_BLH


def _group_of(layer: str, kv_cache_config: Any) -> int:
    return next(i for i, group in enumerate(kv_cache_config.kv_cache_groups) if layer in group.layer_names)
