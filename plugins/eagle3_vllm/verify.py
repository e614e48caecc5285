"""Acceptance of verified trees: vLLM's own sampler chooses a token after every row, the tree's walk follows the choices.

Shape letters: B requests, R tree rows, T logits rows, W vocabulary, D depths.
"""

from typing import Any

import torch
from torch import Tensor

from eagle3_serving.tree import accept_greedy
from eagle3_vllm.compat import (
    InputBatch,
    RejectionSampler,
    Sampler,
    SamplerOutput,
    get_num_nans,
    get_num_sampled_and_rejected,
)
from eagle3_vllm.trees import Trees


class TreeSampler(RejectionSampler):
    """Lossless at every temperature, and with the same seed the very tokens of plain decoding.

    At each row a token y is drawn from the target's law there, with temperature, top-k, top-p, min-p, penalties, grammar
    and all, by the sampler that plain decoding uses; its noise is a function of the request's seed and the row's
    position. A child that holds y is entered, else y is the bonus: `accept_sampled` without proposals, whose only draw
    a row this is (SpecInfer, arXiv 2305.09781, theorem 4.2, for one-hot proposals). Only one row of each depth is ever
    looked at, and which one follows from the depths above it, so rows of a depth may share their noise.
    """

    def __init__(self, sampler: Sampler, spec_config: Any, device: torch.device, trees: Trees) -> None:
        super().__init__(sampler, spec_config, device)
        self.trees = trees

    def __call__(
        self,
        logits: Tensor,
        input_batch: InputBatch,
        draft_logits: Tensor | None = None,
        invalid_drafts: Tensor | None = None,
    ) -> SamplerOutput:
        rows = self.trees.rows
        assert rows is not None
        num_nans = get_num_nans(logits) if self.sampler.compute_nans else None
        start_B1 = input_batch.cu_num_logits[:-1, None].long()
        logit_BR = start_B1 + rows.local_BR
        draft_T = input_batch.input_ids[input_batch.logits_indices]
        chosen_T, processed_TW = self._choose(logits, input_batch, draft_T)
        if invalid_drafts is not None:
            draft_T = draft_T.masked_fill(invalid_drafts, -1)  # checked against no grammar: never accepted
        tokens_BR, chosen_BR = draft_T[logit_BR].long(), chosen_T[logit_BR]
        accepted = accept_greedy(tokens_BR, rows.layout, chosen_BR, self.trees.depth)
        self.trees.accepted = accepted
        sampled, num_sampled = self._sampled(tokens_BR, accepted)
        logprobs = self._logprobs(logits, processed_TW, input_batch, sampled, num_sampled, logit_BR)
        num_sampled, num_rejected = get_num_sampled_and_rejected(
            num_sampled,
            input_batch.seq_lens,
            input_batch.cu_num_logits,
            input_batch.idx_mapping,
            self.sampler.req_states.prefill_len.gpu,
        )
        self.trees.tally.verified(rows.layout.parents_BN, accepted.count_B)
        return SamplerOutput(
            sampled_token_ids=sampled,
            logprobs_tensors=logprobs,
            num_nans=num_nans,
            num_sampled=num_sampled,
            num_rejected=num_rejected,
        )

    def _choose(self, logits_TW: Tensor, batch: InputBatch, draft_T: Tensor) -> tuple[Tensor, Tensor]:
        """A token after every row [T], and the logits it was drawn by."""
        states, slots = self.sampler.sampling_states, batch.idx_mapping_np
        if (states.temperature.np[slots] == 0).all() and not self.sampler.needs_logits_processing[slots].any():
            return logits_TW.argmax(-1), logits_TW  # what the sampler would do, without its kernels
        chosen_T, processed_TW = self.sampler.sample(
            logits_TW,
            batch.expanded_idx_mapping,
            batch.idx_mapping,
            slots,
            batch.positions[batch.logits_indices],
            draft_T,
            batch.expanded_local_pos,
            batch.seq_lens_cpu_upper_bound.numpy(),
            return_logprobs=self._max_logprobs(batch) >= 0,
        )
        return chosen_T.long(), processed_TW

    def _sampled(self, tokens_BR: Tensor, accepted: Any) -> tuple[Tensor, Tensor]:
        """The tokens of the accepted path and the bonus, [B, R] int64, and how many they are, [B] int32."""
        rows_BD, count_B = accepted.rows_BD, accepted.count_B
        path_BD = tokens_BR.gather(1, rows_BD.clamp(min=0))
        sampled_BR = torch.zeros_like(tokens_BR)
        sampled_BR[:, : path_BD.shape[1]] = path_BD
        sampled_BR = sampled_BR.scatter(1, count_B[:, None], accepted.bonus_B[:, None])
        return sampled_BR, (count_B + 1).int()

    def _max_logprobs(self, batch: InputBatch) -> int:
        return int(self.sampler.sampling_states.max_num_logprobs(batch.idx_mapping_np))

    def _logprobs(
        self,
        logits_TW: Tensor,
        processed_TW: Tensor,
        batch: InputBatch,
        sampled: Tensor,
        num_sampled: Tensor,
        logit_BR: Tensor,
    ) -> Any:
        """vLLM's own, told the logits of the path in the order of a text."""
        most = self._max_logprobs(batch)
        if most < 0:
            return None
        assert self.trees.accepted is not None
        rows_BD = self.trees.accepted.rows_BD.clamp(min=0)
        source_BD = logit_BR.gather(1, rows_BD)
        depth_D = torch.arange(1, rows_BD.shape[1] + 1, device=rows_BD.device)
        # past a request's own rows: into one row more, which is dropped
        inside_BD = depth_D < (batch.cu_num_logits[1:] - batch.cu_num_logits[:-1])[:, None]
        end = logits_TW.shape[0]
        target_BD = torch.where(inside_BD, logit_BR[:, :1] + depth_D, end)
        order_T = torch.arange(end + 1, device=rows_BD.device)
        order_T[target_BD.flatten()] = source_BD.flatten()
        used_TW = processed_TW if self.sampler.logprobs_mode.startswith("processed") else logits_TW
        return self._get_logprobs_tensors(
            sampled, num_sampled, used_TW[order_T[:-1]], batch.cu_num_logits, batch.cu_num_logits_np, most
        )
