"""Sampling of verified chains on Model Runner V1: exact on a CPU, where vLLM's own kernels are not.

vLLM's rejection sampler spreads temperature, top-k and top-p over the rows of a pass by a kernel whose form for CPUs
writes into a copy (vllm#42638): rows are then sampled by what the memory held. Batches that are greedy throughout do not
go through it, and stay with vLLM, as all do on CUDA.

Shape letters: B requests, T draft tokens of all of them, L = T + B logits rows, K most draft tokens of one, R = K + 1 rows,
V vocabulary.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import wraps
from typing import Any, NamedTuple

import torch
from torch import Tensor

from eagle3_serving.patches import Patches
from eagle3_serving.tree import PADDING, Proposals, SamplingParams, accept_sampled, tree_layout, with_root
from eagle3_serving.tree.layout import chain_parents
from eagle3_serving.tree.sampling import GREEDY_BELOW
from eagle3_vllm.compat import RejectionSamplerV1, SamplerOutputV1

REJECTED = -1  # vLLM's mark of a place without a token


def register_sampling(patches: Patches) -> None:
    """Put the sampler of this module in the place of vLLM's, where that one's kernels do not run."""
    patches.attribute(RejectionSamplerV1, "forward", _wrap_sampling(RejectionSamplerV1.forward))


def _wrap_sampling(original: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(original)
    def forward(self: Any, metadata: Any, draft_probs: Any, logits: Any, sampling_metadata: Any) -> Any:
        if not metadata.max_spec_len:
            return self.sampler(logits=logits, sampling_metadata=sampling_metadata)  # as in plain decoding
        if logits.device.type != "cpu" or sampling_metadata.all_greedy or self.synthetic_mode:
            return original(self, metadata, draft_probs, logits, sampling_metadata)
        return sample_chains(self, metadata, draft_probs, logits, sampling_metadata)

    return forward


class Rows(NamedTuple):
    """Where each request's rows stand among [target rows; bonus rows], and the draft token after each (REJECTED: none)."""

    index_BR: Tensor
    drafted_BR: Tensor

    @classmethod
    def of(cls, metadata: Any) -> "Rows":
        count_B1 = torch.tensor(metadata.num_draft_tokens)[:, None]
        first_B1 = count_B1.cumsum(0) - count_B1
        tokens_T, place_R = metadata.draft_token_ids.long(), torch.arange(metadata.max_spec_len + 1)
        drafts_BR = place_R < count_B1
        index_BR = torch.where(drafts_BR, first_B1 + place_R, len(tokens_T) + torch.arange(len(count_B1))[:, None])
        drafted_BR = tokens_T[index_BR.clamp(max=len(tokens_T) - 1)].masked_fill(~drafts_BR, REJECTED)
        return cls(index_BR, drafted_BR)


def sample_chains(self: Any, metadata: Any, draft_probs: Tensor | None, logits: Tensor, sampling: Any) -> Any:
    """What vLLM's `RejectionSampler.forward` returns: tokens [B, R] int32, REJECTED after each request's last, and their
    logprobs where asked for.

    `logits` [L, V] of the target, `draft_probs` [T, V] fp32 the laws that drafts were drawn from (None: not drawn).
    Penalties, bad words and the like are vLLM's, applied to each row as if the drafts before it stood in the text.
    """
    rows, drafts = Rows.of(metadata), len(metadata.draft_token_ids)
    order_L = torch.cat([metadata.target_logits_indices, metadata.bonus_logits_indices]).long()
    raw_LV = logits[order_L].float()
    bonus_BV = self.sampler.apply_logits_processors(raw_LV[drafts:].clone(), sampling, True)
    target_TV = self.apply_logits_processors(raw_LV[:drafts].clone(), sampling, metadata)
    processed_LV = torch.cat([target_TV, bonus_BV])
    wants_processed = sampling.max_num_logprobs is not None and self.is_processed_logprobs_mode
    if draft_probs is None or sampling.generators or wants_processed:
        said_BR = follow_draws(self.sampler, processed_LV, rows, sampling, raw_LV if wants_processed else None)
    else:
        said_BR = reject(processed_LV, draft_probs, rows, sampling)
    said_BR = said_BR.int()
    logprobs = None
    if sampling.max_num_logprobs is not None:
        logprobs = self._get_logprobs_tensors(
            sampling.max_num_logprobs, metadata, logits, raw_LV[:drafts], raw_LV[drafts:], said_BR
        )
    return SamplerOutputV1(sampled_token_ids=said_BR, logprobs_tensors=logprobs)


def follow_draws(sampler: Any, logits_LV: Tensor, rows: Rows, sampling: Any, used_LV: Tensor | None) -> Tensor:
    """Tokens [B, R] int64: a token is drawn after each row by plain decoding's own sampler, and the draft is followed as
    long as it says the same.

    Exact for any draft that knows nothing of the noise: `accept_sampled` without proposals (SpecInfer, arXiv 2305.09781,
    theorem 4.2, for one-hot proposals). Each token takes one draw of the request's generator, so that a seed gives plain
    decoding's tokens. `used_LV` receives the logits that were drawn by.
    """
    said_BR = torch.full_like(rows.index_BR, REJECTED)
    open_B = torch.ones(len(said_BR), dtype=torch.bool)
    for place in range(said_BR.shape[1]):
        going = open_B.tolist()
        here = {request: own for request, own in sampling.generators.items() if going[request]}
        index_B = rows.index_BR[:, place]
        drawn_B, drawn_by_BV = sampler.sample(logits_LV[index_B], replace(sampling, generators=here))
        said_BR[:, place] = torch.where(open_B, drawn_B.long(), REJECTED)
        if used_LV is not None:
            used_LV[index_B[open_B]] = drawn_by_BV[open_B]
        open_B = open_B & (drawn_B == rows.drafted_BR[:, place])
        if not open_B.any():
            break
    return said_BR


def reject(logits_LV: Tensor, draft_probs_TV: Tensor, rows: Rows, sampling: Any) -> Tensor:
    """Tokens [B, R] int64 by rejection: a draft that was drawn from q is accepted with min(1, p / q), more often than
    a draw from p meets it."""
    batch, width = rows.index_BR.shape
    greedy_B = sampling.temperature < GREEDY_BELOW
    divisor_B1 = torch.where(greedy_B, 1.0, sampling.temperature)[:, None]
    logits_BRV = torch.stack([logits_LV[index_B] / divisor_B1 for index_B in rows.index_BR.unbind(1)], 1)
    for processor in sampling.logitsprocs.argmax_invariant:
        logits_BRV = torch.stack([processor.apply(logits_BV) for logits_BV in logits_BRV.unbind(1)], 1)
    params = SamplingParams((~greedy_B).float(), sampling.top_k, sampling.top_p)
    drafted_BK = rows.drafted_BR[:, :-1]
    there_BK = drafted_BK != REJECTED
    parents_BK = torch.where(there_BK, chain_parents(batch, width - 1), PADDING)
    # after the first place without a draft there is none
    laws_BKV = draft_probs_TV[rows.index_BR[:, :-1].clamp(max=len(draft_probs_TV) - 1)]
    law_BR = torch.where(rows.drafted_BR != REJECTED, torch.arange(width), -1)
    proposals = Proposals(laws_BKV, law_BR, torch.arange(laws_BKV.shape[-1]))
    tokens_BR = torch.cat([torch.zeros_like(drafted_BK[:, :1]), drafted_BK.clamp(min=0)], 1)
    layout = tree_layout(with_root(parents_BK))
    accepted = accept_sampled(tokens_BR, layout, logits_BRV, params, width - 1, None, proposals, max_children=1)
    place_R, count_B1 = torch.arange(width), accepted.count_B[:, None]
    said_BR = torch.where(place_R < count_B1, rows.drafted_BR, REJECTED)
    return said_BR.scatter(1, count_B1, accepted.bonus_B[:, None])
