"""The speculator for Model Runner V2: takes in what was accepted, grows trees, chooses what is verified next.

Shape letters: B requests, T rows of a pass, K frontier nodes, C candidates, N nodes, R rows, S keys, H hidden size.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from eagle3_serving.errors import InputError
from eagle3_serving.tree import Children, DraftTree, grow_draft, likeliest_path, select, select_over_batch, top_children
from eagle3_serving.tree.calibrate import Calibration
from eagle3_vllm.architecture import Eagle3ServingForCausalLM, checkpoint_directory
from eagle3_vllm.compat import CUDAGraphMode, EagleSpeculator, InputBatch, VllmConfig, prepare_prefill_inputs
from eagle3_vllm.drafting import DraftRowsOverPages
from eagle3_vllm.trees import Trees, without_rows


class TreeSpeculator(EagleSpeculator):
    """Dynamic trees (EAGLE-2 section 4, EAGLE-3 section 3.1) in the place of vLLM's chain."""

    model: Eagle3ServingForCausalLM

    def __init__(self, vllm_config: VllmConfig, device: torch.device, trees: Trees) -> None:
        super().__init__(vllm_config, device)
        self.trees, self.settings = trees, trees.settings
        self.calibration = None
        if self.settings.calibrated:
            draft = self.draft_model_config
            try:
                self.calibration = Calibration.beside(checkpoint_directory(str(draft.model), draft.revision))
            except ValueError as error:
                raise InputError(str(error)) from None
        if self.calibration is not None:
            self.calibration.place(device, self.settings.top_k)

    def init_cudagraph_manager(self, cudagraph_mode: Any) -> None:
        """None: the draft runs eagerly. The target's graphs are vLLM's own."""

    def capture(self) -> None:
        """Nothing is captured."""

    @torch.inference_mode()
    def propose(
        self,
        input_batch: InputBatch,
        attn_metadata: dict[str, Any],
        slot_mappings: dict[str, Tensor],
        last_hidden_states: Tensor,
        aux_hidden_states: list[Tensor] | None,
        num_sampled: Tensor,
        num_rejected: Tensor,
        last_sampled: Tensor,
        next_prefill_tokens: Tensor,
        temperature: Tensor,
        seeds: Tensor,
        dp_sync_state: Any = None,
        dummy_run: bool = False,
        skip_attn_for_dummy_run: bool = False,
        mm_inputs: Any = None,
        is_profile: bool = False,
        num_speculative_tokens: int | None = None,
    ) -> Tensor:
        """Draft tokens [B, nodes] int64, in target ids; their parents go to `trees`."""
        assert aux_hidden_states
        count = input_batch.num_reqs
        nodes = self.trees.nodes if num_speculative_tokens is None else num_speculative_tokens
        hidden_TH, feedback_TH = self._absorb(
            input_batch, attn_metadata, slot_mappings, aux_hidden_states, num_sampled, num_rejected, last_sampled,
            next_prefill_tokens, dummy_run,
        )  # fmt: skip
        self.draft_tokens[:count] = 0
        drafting = [] if dummy_run or nodes == 0 else self._drafting(input_batch)
        if drafting:
            index_B = torch.tensor(drafting, device=self.device)
            last_B = self.last_token_indices[:count][index_B]
            prefix_B = (input_batch.seq_lens[:count] - num_rejected)[index_B].long()
            slots_B = input_batch.idx_mapping[index_B]
            longest = int(input_batch.seq_lens_cpu_upper_bound[:count].max())
            tree = self._grow(hidden_TH[last_B], feedback_TH[last_B], prefix_B, slots_B, longest, nodes)
            self.draft_tokens[index_B, : tree.tokens_BN.shape[1]] = tree.tokens_BN
            self.trees.keep(slots_B, tree)
        return self.draft_tokens[:count]

    def _drafting(self, batch: InputBatch) -> list[int]:
        """The requests whose prompt is whole after this pass: others have no token to draft after."""
        after = batch.num_computed_tokens_np + batch.num_scheduled_tokens
        whole: list[int] = (after >= batch.prefill_len_np).nonzero()[0].tolist()
        return whole

    def _absorb(
        self,
        batch: InputBatch,
        attn_metadata: dict[str, Any] | None,
        slot_mappings: dict[str, Tensor],
        aux_hidden_states: list[Tensor],
        num_sampled: Tensor,
        num_rejected: Tensor,
        last_sampled: Tensor,
        next_prefill_tokens: Tensor,
        dummy_run: bool,
    ) -> tuple[Tensor, Tensor]:
        """States of every row: the accepted path's rows stand where a text has them, rejected rows behind are waste.

        The pass keeps the target's shape, so that the host needs to know no counts.
        """
        rows = batch.num_tokens_after_padding
        features_TF = torch.cat(aux_hidden_states, dim=-1)
        if self.trees.accepted is not None and not dummy_run:
            source_BD, destination_BD = self.trees.path_index()
            order_T = torch.arange(rows, device=self.device)
            order_T[destination_BD.flatten()] = source_BD.flatten()
            features_TF = features_TF[order_T[: features_TF.shape[0]]]
            batch = replace(batch, input_ids=batch.input_ids[order_T], positions=batch.positions[order_T])
        self._copy_request_inputs(batch.num_reqs, batch.idx_mapping, self.temperature, self.seeds, dummy_run=dummy_run)
        prepare_prefill_inputs(
            self.last_token_indices,
            self.current_draft_step,
            self.input_buffers,
            batch,
            num_sampled,
            num_rejected,
            last_sampled,
            next_prefill_tokens,
            self.max_num_reqs,
        )
        self.hidden_states[:rows].copy_(self.model.combine_hidden_states(features_TF))
        states: tuple[Tensor, Tensor] = self._run_model(
            rows, without_rows(attn_metadata), slot_mappings, None, CUDAGraphMode.NONE
        )
        return states

    def _grow(
        self, hidden_BH: Tensor, feedback_BH: Tensor, prefix_B: Tensor, slots_B: Tensor, longest: int, nodes: int
    ) -> DraftTree:
        draft_rows = DraftRowsOverPages(self.model, self.block_tables, self.kv_cache_config, prefix_B, slots_B, longest)
        draft = grow_draft(
            self.model.draft_logits(hidden_BH),
            feedback_BH,
            self.settings.top_k,
            self.trees.depth,
            self._children,
            lambda depth, depths, frontier: frontier.nodes_BK.shape[1],
            draft_rows,
        )
        candidates = likeliest_path(draft.candidates, draft.depth, self.trees.only_chain_S[slots_B])
        most = self.settings.batch_nodes
        tree = select(candidates, nodes) if most is None else select_over_batch(candidates, most, nodes)
        return tree._replace(tokens_BN=self.model.model.vocabulary.to_target(tree.tokens_BN))

    def _children(self, logits_BKV: Tensor, depth: int) -> Children:
        children = top_children(logits_BKV, self.settings.top_k)
        return children if self.calibration is None else self.calibration.apply(children, depth)
