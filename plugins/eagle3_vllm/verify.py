"""Acceptance of verified trees: vLLM's own sampler chooses a token after every row, the tree's walk follows the choices.

Shape letters: B requests, R tree rows, T rows of the logits, W vocabulary, D depths.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from eagle3_vllm.compat import InputBatch, RejectionSampler, Sampler, SamplerOutput, get_num_nans
from eagle3_vllm.kernels.accept import accept
from eagle3_vllm.metrics import WRITE_EVERY_S
from eagle3_vllm.trees import Trees


class TreeSampler(RejectionSampler):
    """Lossless at every temperature, and with the same seed the very tokens of plain decoding.

    At each row a token y is drawn from the target's law there, with temperature, top-k, top-p, min-p, penalties, grammar
    and all, by the sampler that plain decoding uses; its noise is a function of the request's seed and the row's
    position. A child that holds y is entered, else y is the bonus: `accept_sampled` without proposals, whose only draw
    a row this is (SpecInfer, arXiv 2305.09781, theorem 4.2, for one-hot proposals). Only one row of each depth is ever
    looked at, and which one follows from the depths above it, so rows of a depth may share their noise. A tree that was
    drafted by that noise (`noise`) changes none of it: y is one of the target's law and the noise alone.
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
        trees = self.trees
        assert trees.rows is not None and trees.requests is not None
        num_nans = get_num_nans(logits) if self.sampler.compute_nans else None
        chosen_T, processed_TW = self._choose(logits, input_batch)
        batch, rows = trees.requests.size, trees.rows.trees.rows
        # what vLLM copies to the host while the next pass runs is made anew, the path keeps its place
        said_BR = torch.empty(batch, rows, dtype=torch.long, device=logits.device)
        counts_2B = torch.empty(2, batch, dtype=torch.int32, device=logits.device)
        out = replace(
            trees.accepted.first(batch), sampled_BR=said_BR, num_sampled_B=counts_2B[0], num_rejected_B=counts_2B[1]
        )
        accept(
            trees.rows.trees,
            trees.requests,
            input_batch.input_ids,
            chosen_T,
            input_batch.seq_lens,
            self.sampler.req_states.prefill_len.gpu,
            out,
            trees.tally.sums,
            invalid_drafts,  # checked against no grammar: never accepted
        )
        trees.tally.write(WRITE_EVERY_S)
        there = input_batch.num_reqs
        sampled, num_sampled, num_rejected = said_BR[:there], counts_2B[0, :there], counts_2B[1, :there]
        return SamplerOutput(
            sampled_token_ids=sampled,
            logprobs_tensors=self._logprobs(logits, processed_TW, input_batch, sampled, num_sampled),
            num_nans=num_nans,
            num_sampled=num_sampled,
            num_rejected=num_rejected,
        )

    def _choose(self, logits_TW: Tensor, batch: InputBatch) -> tuple[Tensor, Tensor]:
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
            batch.input_ids[batch.logits_indices],
            batch.expanded_local_pos,
            batch.seq_lens_cpu_upper_bound.numpy(),
            return_logprobs=self._max_logprobs(batch) >= 0,
        )
        return chosen_T, processed_TW

    def _max_logprobs(self, batch: InputBatch) -> int:
        return int(self.sampler.sampling_states.max_num_logprobs(batch.idx_mapping_np))

    def _logprobs(
        self, logits_TW: Tensor, processed_TW: Tensor, batch: InputBatch, sampled: Tensor, num_sampled: Tensor
    ) -> Any:
        """vLLM's own, told the logits of the path in the order of a text."""
        most = self._max_logprobs(batch)
        if most < 0:
            return None
        rows_BD = self.trees.accepted.rows_BD[: batch.num_reqs].clamp(min=0)
        depth_D = torch.arange(1, rows_BD.shape[1] + 1, device=rows_BD.device)
        start_B1 = batch.cu_num_logits[:-1, None].long()
        # past a request's own rows: into one row more, which is dropped
        inside_BD = depth_D < (batch.cu_num_logits[1:] - batch.cu_num_logits[:-1])[:, None]
        end = logits_TW.shape[0]
        order_T = torch.arange(end + 1, device=rows_BD.device)
        order_T[torch.where(inside_BD, start_B1 + depth_D, end).flatten()] = (start_B1 + rows_BD).flatten()
        used_TW = processed_TW if self.sampler.logprobs_mode.startswith("processed") else logits_TW
        return self._get_logprobs_tensors(
            sampled, num_sampled, used_TW[order_T[:-1]], batch.cu_num_logits, batch.cu_num_logits_np, most
        )
