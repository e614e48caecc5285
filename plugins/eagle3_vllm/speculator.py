"""The speculator for Model Runner V2: takes in what was accepted, grows trees, chooses what is verified next.

Shape letters: B requests, T rows of a pass, N nodes, F concatenated features, H hidden size, G KV groups.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from eagle3_serving.errors import InputError
from eagle3_serving.serve.shape import Shape
from eagle3_serving.tree.calibrate import Calibration
from eagle3_vllm.architecture import Eagle3ServingForCausalLM, checkpoint_directory
from eagle3_vllm.attention.paged import Moves
from eagle3_vllm.choice import save_costs
from eagle3_vllm.compat import (
    CUDAGraphMode,
    EagleSpeculator,
    InputBatch,
    TritonError,
    VllmConfig,
    init_logger,
    is_global_first_rank,
)
from eagle3_vllm.drafting import Start, TreeDrafter
from eagle3_vllm.graphs import DraftDescriptor, DraftGraphs, WholeGraphs, region
from eagle3_vllm.kernels.absorb import AbsorbBuffers, absorb
from eagle3_vllm.kernels.noise import SharedNoise
from eagle3_vllm.kernels.requests import Requests
from eagle3_vllm.measure import replayed_costs
from eagle3_vllm.scheduling import costs_file
from eagle3_vllm.trees import Trees, planned_inside, without_rows

logger = init_logger("vllm.eagle3")


class TreeSpeculator(EagleSpeculator):
    """Dynamic trees (EAGLE-2 section 4, EAGLE-3 section 3.1) in the place of vLLM's chain.

    Behind a pass of decoding steps alone, the moves of accepted keys and values, the drafter's pass over the verified rows
    and the whole draft are one CUDA graph. Where prompts were read too, the drafter's pass stands outside.
    """

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
        # the drafter's pass reads ids and positions where vLLM's own code has them
        self.absorbed = replace(
            AbsorbBuffers.make(self.max_num_reqs, self.max_num_tokens, device),
            ids_T=self.input_buffers.input_ids,
            positions_T=self.input_buffers.positions,
            last_B=self.last_token_indices,
            slots_B=self.idx_mapping,
        )
        # what the drafter's pass gave at every request's last row, where the draft is a graph of its own
        self.hidden_BH = torch.zeros(self.max_num_reqs, self.hidden_size, dtype=self.dtype, device=device)
        self.feedback_BH = torch.zeros_like(self.hidden_BH)
        self.whole_graphs: WholeGraphs | None = None
        self.draft_graphs: DraftGraphs | None = None
        self.moves: Moves | None = None
        self.fallback_shape: Shape | None = None  # what is drafted where graphs could not be captured

    def load_model(self, target_model: Any) -> None:
        super().load_model(target_model)
        self.drafter = TreeDrafter(self.model, self.trees, self.calibration)

    def init_cudagraph_manager(self, cudagraph_mode: Any) -> None:
        self.moves = None  # KV caches are made anew with the graphs
        self.whole_graphs = WholeGraphs(self.trees, self.vllm_config, self.device, cudagraph_mode)
        self.draft_graphs = DraftGraphs(self.trees, self.vllm_config, self.device, cudagraph_mode)

    @torch.inference_mode()
    def capture(self) -> None:
        """The drafts' graphs, after the target's. Where they cannot be had a short chain is drafted without any."""
        assert self.whole_graphs is not None and self.draft_graphs is not None
        self.fallback_shape = None  # vLLM captures twice: the first time to measure memory
        self.idx_mapping.fill_(-1)
        for buffer in (self.last_token_indices, self.absorbed.prefix_B, self.absorbed.drafting_B):
            buffer.zero_()
        try:
            self.whole_graphs.capture(
                self._capture_whole,
                self.model_state,
                self.target_input_buffers,
                self.block_tables,
                self.target_attn_groups,
                self.kv_cache_config,
                progress_bar_desc="Capturing CUDA graphs of verified rows and drafts",
            )
            self.draft_graphs.capture_each(self._draft)
            self._measure()
        except (RuntimeError, TritonError) as error:  # no memory, or an operation that no graph may hold
            self.whole_graphs.release_graphs()
            self.draft_graphs.release_graphs()
            nodes = self.trees.rows_a_request - 1
            self.fallback_shape = Shape.chain(min(self.settings.fallback_tokens, nodes, self.trees.depth))
            logger.warning(
                "eagle3: a chain of %d is drafted, without CUDA graphs, since trees' could not be captured (%s); "
                "fewer nodes or sequences may fit, EAGLE3_MODE=chain serves vLLM's own chain",
                self.fallback_shape.steps,
                (str(error) or type(error).__name__).splitlines()[0],
            )
        if self.trees.target_graphs.to_measure:
            self.trees.target_graphs = None  # vLLM lets go of it, and what it holds of memory is to be free

    def _measure(self) -> None:
        """Costs for the scheduler to choose by, unless vLLM is only measuring memory, or they are known."""
        graphs = self.trees.target_graphs
        if len(self.settings.trees) < 2 or self.settings.profile is not None or not graphs.graphs or graphs.to_measure:
            return
        costs = replayed_costs(self)  # by every rank: in a graph of tensor parallelism they wait for one another
        path = costs_file()
        if path is None or not is_global_first_rank():
            return
        try:
            save_costs(path, costs)
        except OSError as error:
            logger.warning("eagle3: trees by batch size alone: %s cannot be written (%s)", path, error.strerror)

    def _capture_whole(
        self,
        batch: int,
        tokens: int,
        attn_metadata: dict[str, Any] | None,
        slot_mappings: dict[str, Tensor] | None,
        num_tokens_across_dp: Tensor | None,
        mode: Any,
    ) -> None:
        target: Any = self.trees.target_graphs
        features = [feature_TH[:tokens] for feature_TH in target.aux_hidden_states]
        shape = self.trees.shape(self.trees.rows_a_request - 1 if self.trees.ragged else tokens // batch - 1)
        self._whole(shape, batch, tokens, features, planned_inside(attn_metadata), slot_mappings)

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
        count, tokens = input_batch.num_reqs, input_batch.num_tokens_after_padding
        if dummy_run:
            self._absorb(tokens, aux_hidden_states, attn_metadata, slot_mappings)
            return self.draft_tokens[:count]
        trees, requests = self.trees, self.trees.requests
        if trees.wide_noise is not None:
            # vLLM hands these over in places that change, and graphs read what lies in ours
            self.temperature.copy_(temperature)
            self.seeds.copy_(seeds)
        assert requests is not None and self.draft_graphs is not None
        batch = requests.size  # of the pass, padding included
        nodes = trees.rows_a_request - 1 if num_speculative_tokens is None else num_speculative_tokens
        shape = self.fallback_shape if nodes and self.fallback_shape else trees.shape(nodes)
        whole = self._whole_graph(shape, requests, tokens, aux_hidden_states)
        alone = None if whole or not shape.drafts else self.draft_graphs.find(count, shape)
        if alone is not None and (requests.varlen or alone.num_reqs > requests.size):
            # padding is told from requests, or the graph would draft for what an earlier batch left there
            starts = input_batch.query_start_loc, input_batch.cu_num_logits
            requests = Requests(alone.num_reqs, requests.count, requests.idx_mapping_B, *starts)
        absorb(
            requests,
            int(input_batch.num_scheduled_tokens.max()),
            trees.path_BD,
            num_sampled,
            num_rejected,
            input_batch.input_ids,
            input_batch.seq_lens,
            last_sampled,
            next_prefill_tokens,
            self.max_model_len,
            self.absorbed,
        )
        if whole is not None:
            assert self.whole_graphs is not None
            self.whole_graphs.run_fullgraph(whole)
        elif alone is None and trees.whole:
            with region("verified rows and draft"):
                # rows past the batch's own, of a piecewise graph, have no order
                ordered = input_batch.num_tokens
                self._whole(shape, batch, tokens, aux_hidden_states, attn_metadata, slot_mappings, ordered)
        else:
            self._move(batch)  # the padding of the draft alone has accepted nothing in this pass
            hidden_TH, feedback_TH = self._absorb(
                tokens, aux_hidden_states, attn_metadata, slot_mappings, input_batch.num_tokens
            )
            if shape.drafts:
                self._draft_next(hidden_TH, feedback_TH, shape, count, alone)
        if not shape.drafts or shape.tokens <= nodes:  # past a tree's own nodes no id may be left that is none
            self.draft_tokens[:count, shape.tokens - 1 :] = 0
        return self.draft_tokens[:count]

    def _whole_graph(self, shape: Shape, requests: Requests, tokens: int, features: list[Tensor]) -> Any:
        """The graph for what follows this pass; None where it was captured for nothing like it."""
        trees, target = self.trees, self.trees.target_graphs
        if not trees.whole or target is None or not target.aux_hidden_states or self.whole_graphs is None:
            return None
        if features[0].data_ptr() != target.aux_hidden_states[0].data_ptr():
            return None  # the target's pass was no graph: the features lie elsewhere
        rows = trees.rows_a_request if trees.ragged else tokens // requests.size
        if shape != trees.shape(rows - 1):
            return None  # the load has just changed the tree
        uniform = None if trees.ragged else rows
        found = self.whole_graphs.dispatch(requests.size, tokens, uniform, 0, max_query_len=rows)
        fits = found.cg_mode == CUDAGraphMode.FULL and (found.num_reqs, found.num_tokens) == (requests.size, tokens)
        return found if fits and found in self.whole_graphs.graphs else None

    def _whole(
        self,
        shape: Shape,
        batch: int,
        tokens: int,
        features: list[Tensor],
        attn_metadata: dict[str, Any] | None,
        slot_mappings: dict[str, Tensor] | None,
        ordered: int | None = None,
    ) -> None:
        """All that follows a pass of decoding steps: one CUDA graph. `ordered`: rows that `absorb` has put in order, if not
        all."""
        self._move(batch)
        ordered = tokens if ordered is None else ordered
        hidden_TH, feedback_TH = self._absorb(tokens, features, attn_metadata, slot_mappings, ordered)
        if shape.drafts:
            last_B = self.last_token_indices[:batch]
            self._draft(shape, batch, hidden_TH.index_select(0, last_B), feedback_TH.index_select(0, last_B))

    def _move(self, batch: int) -> None:
        """The accepted path's keys and values to where a text has them; the drafter writes its own anew."""
        rows = self.trees.rows
        if rows is None:
            return
        if self.moves is None:
            self.moves = Moves(self.vllm_config, self.kv_cache_config)
        self.moves(self.block_tables.slot_mappings, self.trees.path_BD[:batch], rows.trees.index_BR[:batch, 0])

    def _absorb(
        self,
        tokens: int,
        features: list[Tensor],
        attn_metadata: dict[str, Any] | None,
        slot_mappings: dict[str, Tensor] | None,
        ordered: int = 0,
    ) -> tuple[Tensor, Tensor]:
        """States [T, H] of every row of the pass: the accepted path's rows stand where a text has them, rejected rows
        behind are waste. The first `ordered` rows are taken in the order that `absorb` said.

        The pass keeps the target's shape, so that the host needs to know no counts.
        """
        features_TF = torch.cat(features, dim=-1)
        if ordered:
            features_TF = features_TF.index_select(0, self.absorbed.order_T[:ordered])
        self.hidden_states[: len(features_TF)].copy_(self.model.combine_hidden_states(features_TF))
        states: tuple[Tensor, Tensor] = self._run_model(
            tokens, without_rows(attn_metadata), slot_mappings, None, CUDAGraphMode.NONE
        )
        return states

    def _draft_next(
        self, hidden_TH: Tensor, feedback_TH: Tensor, shape: Shape, count: int, graph: DraftDescriptor | None
    ) -> None:
        last_B = self.last_token_indices[:count]
        if graph is None:
            with region("draft"):
                self._draft(shape, count, hidden_TH.index_select(0, last_B), feedback_TH.index_select(0, last_B))
            return
        torch.index_select(hidden_TH, 0, last_B, out=self.hidden_BH[:count])
        torch.index_select(feedback_TH, 0, last_B, out=self.feedback_BH[:count])
        assert self.draft_graphs is not None
        self.draft_graphs.run_fullgraph(graph)

    def _draft(
        self, shape: Shape, batch: int, hidden_BH: Tensor | None = None, feedback_BH: Tensor | None = None
    ) -> None:
        """A CUDA graph, or the end of one. Without states those in the buffers are taken."""
        absorbed, wide = self.absorbed, self.trees.wide_noise
        start = Start(
            self.hidden_BH[:batch] if hidden_BH is None else hidden_BH,
            self.feedback_BH[:batch] if feedback_BH is None else feedback_BH,
            self._tables(batch),
            absorbed.prefix_B[:batch],
            absorbed.slots_B[:batch],
            absorbed.drafting_B[:batch],
            self.trees.longest,
            None if wide is None else SharedNoise(self.temperature, self.seeds, wide),
        )
        self.drafter.draw(shape, start, self.draft_tokens[:batch])

    def _tables(self, batch: int) -> list[Tensor]:
        """The block table of each of the drafter's layers, in the order of the batch."""
        groups = self.kv_cache_config.kv_cache_groups
        group_of = {name: place for place, group in enumerate(groups) for name in group.layer_names}
        layers: Any = self.model.attention
        return [self.block_tables.input_block_tables[group_of[layer.layer_name]][:batch] for layer in layers]
