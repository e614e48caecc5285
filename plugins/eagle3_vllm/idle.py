"""Steps that draft nothing cost next to nothing, on runner V1: the drafter's cache is filled later, many rows at once.

vLLM runs the whole drafter in a step scheduled without draft tokens, so that its cache stays whole. What a drafter of one layer caches of a row depends on that row alone, so rows can wait until
drafting goes on, and two projections are enough for them.

Shape letters: B requests, T rows of a pass, R rows kept, F features of the target.
"""

from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from eagle3_serving.patches import Patches
from eagle3_vllm.compat import SpecDecodeBaseProposer

if TYPE_CHECKING:
    from eagle3_vllm.architecture import Eagle3ServingForCausalLM

MOST_ROWS = 512  # that wait; a long prompt's are taken in at once


class Missed(NamedTuple):
    """Rows of one pass: features [T, F], the token after each [T], positions [T], cache slots [T]."""

    features_TF: Tensor
    tokens_T: Tensor
    positions_T: Tensor
    slots_T: Tensor


class Backlog:
    """Rows that the drafter's cache lacks, oldest first."""

    def __init__(self, model: "Eagle3ServingForCausalLM") -> None:
        self.model = model
        self._missed: list[Missed] = []
        self._rows = 0

    def add(self, rows: Missed) -> None:
        self._missed.append(rows)
        self._rows += len(rows.tokens_T)
        if self._rows >= MOST_ROWS:
            self.absorb()

    @torch.inference_mode()
    def absorb(self) -> None:
        """Write all of them into the cache."""
        if not self._missed:
            return
        features_RF, tokens_R, positions_R, slots_R = (torch.cat(parts) for parts in zip(*self._missed, strict=True))
        self._missed, self._rows = [], 0
        kept = last_of_each(slots_R)
        fused_RH = self.model.combine_hidden_states(features_RF[kept])
        k_BLKD, v_BLKD = self.model.model.keys_values(tokens_R[kept][None], fused_RH[None], positions_R[kept][None])
        layer: Any = self.model.attention[0]
        layer.impl.do_kv_cache_update(layer, k_BLKD[0], v_BLKD[0], layer.kv_cache, slots_R[kept])


def last_of_each(slots_R: Tensor) -> Tensor:
    """Rows that no later row writes over, and that have a slot at all (negative: none). [R'] int64, in order."""
    order_R = torch.arange(len(slots_R), device=slots_R.device)
    unique, place_R = slots_R.unique(return_inverse=True)
    last = torch.full_like(unique, -1, dtype=torch.int64).scatter_reduce_(0, place_R, order_R, "amax")
    return last[unique >= 0].sort().values


def caches_alone(model: "Eagle3ServingForCausalLM") -> bool:
    """Whether rows enter the cache without the attention that reads it: one layer, whose backend keeps the two apart."""
    attention: Any = list(model.attention)
    return len(attention) == 1 and not attention[0].attn_backend.forward_includes_kv_cache_update


def register_idle(patches: Patches) -> None:
    patches.attribute(SpecDecodeBaseProposer, "propose", _wrap_propose(SpecDecodeBaseProposer.propose))


def _wrap_propose(original: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(original)
    def propose(
        self: Any,
        num_speculative_tokens: int,
        target_token_ids: Tensor,
        target_positions: Tensor,
        target_hidden_states: Tensor,
        next_token_ids: Tensor,
        token_indices_to_sample: Tensor | None,
        common_attn_metadata: Any,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        backlog = _backlog_of(getattr(self, "model", None))
        if backlog is None or num_speculative_tokens or kwargs.get("mm_embed_inputs") is not None:
            if backlog is not None:
                backlog.absorb()
            return original(
                self,
                num_speculative_tokens,
                target_token_ids,
                target_positions,
                target_hidden_states,
                next_token_ids,
                token_indices_to_sample,
                common_attn_metadata,
                *args,
                **kwargs,
            )
        self.num_speculative_tokens, self._last_draft_probs = 0, None
        last_B = token_indices_to_sample
        if last_B is None:
            last_B = common_attn_metadata.query_start_loc[1:] - 1
        tokens_T = target_token_ids.roll(-1)
        tokens_T[last_B] = next_token_ids.to(tokens_T.dtype)
        rows = len(tokens_T)
        # positions and slots stand in buffers that the next step writes
        slots_T = common_attn_metadata.slot_mapping[:rows].clone()
        backlog.add(Missed(target_hidden_states[:rows], tokens_T, target_positions.clone(), slots_T))
        return next_token_ids.new_empty(len(next_token_ids), 0, dtype=torch.int64)

    return propose


def _backlog_of(model: Any) -> Backlog | None:
    """None where the drafter is not ours, or does not cache alone."""
    from eagle3_vllm.architecture import Eagle3ServingForCausalLM  # late: most of vLLM's processes never draft

    if not isinstance(model, Eagle3ServingForCausalLM):
        return None
    if model.backlog is None and caches_alone(model):
        model.backlog = Backlog(model)
    backlog: Backlog | None = model.backlog
    return backlog
