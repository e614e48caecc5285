"""A draft on vLLM: rows over the drafter's own paged KV, and the tree of every request of a batch from first to last depth.

The draft rows' keys and values never enter the pages: they are wanted for one draft only, and no slot is needed for them.

Shape letters: B requests, K frontier nodes, S draft rows so far, N nodes, A query heads, X key-value heads, H draft hidden
size, D head size, V draft vocabulary.
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from eagle3_serving.drafter import DraftStep
from eagle3_serving.serve.shape import Shape
from eagle3_serving.tree import (
    PADDING,
    Children,
    DraftTree,
    coupled_children,
    grow_draft,
    gumbel,
    likeliest_path,
    select,
    select_over_batch,
    top_children,
)
from eagle3_serving.tree.calibrate import Calibration
from eagle3_vllm.architecture import Eagle3ServingForCausalLM
from eagle3_vllm.attention.paged import Prefix, prefix_of
from eagle3_vllm.compat import init_logger
from eagle3_vllm.kernels.calibrate import CalibrationTables
from eagle3_vllm.kernels.expand import expand
from eagle3_vllm.kernels.noise import SharedNoise
from eagle3_vllm.kernels.pool import DraftBuffers, DraftShape
from eagle3_vllm.kernels.select import select as select_into
from eagle3_vllm.trees import Trees

logger = init_logger("vllm.eagle3")


class Start(NamedTuple):
    """What a draft starts from. `hidden_BH`, `feedback_BH`: the drafter's pass at each request's last row. `tables`: the
    block table of each of the drafter's layers. `prefix_B` rows of each request in its pages, none above `longest`.
    `slots_B`: -1 where there is no request. Where not `drafting_B` (a prompt that is not whole) nothing is drafted. With
    `noise` children are what the draws after their parents may be; their depth's draw is at position `prefix_B` + depth - 1."""

    hidden_BH: Tensor
    feedback_BH: Tensor
    tables: list[Tensor]
    prefix_B: Tensor
    slots_B: Tensor
    drafting_B: Tensor
    longest: int
    noise: SharedNoise | None = None


class Rows(Protocol):
    """One draft's depths, one after the other."""

    def step(
        self, tokens_BK: Tensor, state_BKH: Tensor, position_BK: Tensor, mask_BKS: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Target ids [B, K], their parents' states, positions and what each row sees -> logits [B, K, V], states."""


class DraftRows:
    """The drafter's steps over one draft of at most `rows` draft rows: each sees its request's prefix, its ancestors among
    the draft, and itself."""

    def __init__(self, model: Eagle3ServingForCausalLM, start: Start, rows: int) -> None:
        self.model, self.rows = model, rows
        self.prefixes: list[Prefix] = [
            prefix_of(layer, table_BN, start.prefix_B, start.longest, model.window)
            for layer, table_BN in zip(model.attention, start.tables, strict=True)
        ]
        self.tails: list[tuple[Tensor, Tensor] | None] = [None] * len(self.prefixes)
        self.size = self.steps = 0

    def step(
        self, tokens_BK: Tensor, state_BKH: Tensor, position_BK: Tensor, mask_BKS: Tensor
    ) -> tuple[Tensor, Tensor]:
        step = self.states(tokens_BK, state_BKH, position_BK, mask_BKS)
        logits_TV = self.model.draft_logits(step.hidden_BLH.flatten(0, 1))
        return logits_TV.unflatten(0, tokens_BK.shape), step.feedback_BLH

    def states(self, tokens_BK: Tensor, state_BKH: Tensor, position_BK: Tensor, mask_BKS: Tensor) -> DraftStep:
        """The same without logits."""
        end = mask_BKS.shape[2]

        def attend_over(layer: int, q_BKAD: Tensor, k_BKXD: Tensor, v_BKXD: Tensor) -> Tensor:
            tail = self.tails[layer]
            if tail is None:
                shape = k_BKXD.shape[0], self.rows, *k_BKXD.shape[2:]
                tail = self.tails[layer] = k_BKXD.new_empty(shape), v_BKXD.new_empty(shape)
            for kept, new in zip(tail, (k_BKXD, v_BKXD), strict=True):
                kept[:, self.size : end] = new
            return self.prefixes[layer].attend(q_BKAD, tail[0][:, :end], tail[1][:, :end], mask_BKS, self.steps)

        step = self.model.model.step(tokens_BK, state_BKH, position_BK, attend_over)
        self.size, self.steps = end, self.steps + 1
        return step


class MaskRows:
    """A parallel drafter's depths: one pass over masks, which stand behind what was taken in, gives the states of all of them.

    Masks see the prefix and the masks before them. A node's token is for the causal head alone, where there is one.
    """

    def __init__(self, model: Eagle3ServingForCausalLM, start: Start, depths: int) -> None:
        self.model, self.depth = model, 0
        if not depths:
            return
        batch, device = len(start.prefix_B), start.prefix_B.device
        masked_LF, tokens_L = model.model.masks(depths)
        state_LH = model.combine_hidden_states(masked_LF)
        ahead_L = torch.arange(depths, device=device)
        seen_LL = ahead_L <= ahead_L[:, None]
        self.hidden_BLH = (
            DraftRows(model, start, depths)
            .states(
                tokens_L.expand(batch, -1),
                state_LH.expand(batch, -1, -1),
                start.prefix_B[:, None].long() + ahead_L,
                seen_LL.expand(batch, -1, -1),
            )
            .hidden_BLH
        )

    def step(
        self, tokens_BK: Tensor, state_BKH: Tensor, position_BK: Tensor, mask_BKS: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Logits [B, K, V] and states of the next depth's nodes; positions and mask were the masks' own."""
        masked_B1H = self.hidden_BLH[:, self.depth, None]
        self.depth += 1
        state_BKH = self.model.model.follow(tokens_BK, state_BKH, masked_B1H.expand_as(state_BKH))
        logits_TV = self.model.draft_logits(state_BKH.flatten(0, 1))
        return logits_TV.unflatten(0, tokens_BK.shape), state_BKH


class TreeDrafter:
    """Draws trees. All that it computes stands in one CUDA graph a tree and batch size: no value is read on the host.

    On a GPU by Triton kernels over buffers that keep their places; elsewhere, and where one budget is shared by a batch, by
    the core's own operations. Exact ties apart they draw the same trees.
    """

    def __init__(self, model: Eagle3ServingForCausalLM, trees: Trees, calibration: Calibration | None) -> None:
        self.model, self.trees, self.calibration = model, trees, calibration
        vocabulary = model.model.config.draft_vocab_size
        shapes = [shape for shape in trees.shapes.values() if shape.drafts]
        if calibration is not None:
            for shape in shapes:
                calibration.place(trees.device, min(shape.top_k, vocabulary))
        self.buffers: dict[Shape, DraftBuffers] = {}
        if not trees.by_kernels:
            return
        for shape in shapes:
            try:
                drawn = DraftShape(shape.top_k, shape.steps, vocabulary)
            except ValueError as error:
                logger.warning("eagle3: tree %s is drawn by PyTorch's operations, not by kernels: %s", shape, error)
                continue
            self.buffers[shape] = DraftBuffers.make(trees.parents_SK.shape[0] - 1, drawn, trees.device)
        self.calibration_tables = None if calibration is None else CalibrationTables.of(calibration, trees.device)
        self.target_ids_V = None if model.whole_vocabulary else model.model.vocabulary.target_ids

    def draw(self, shape: Shape, start: Start, draft_tokens_BN: Tensor) -> None:
        """The tree of every request into `draft_tokens_BN` (target ids) and, by its slot, into `trees.parents_SK`."""
        draw = self._by_kernels if shape in self.buffers else self._by_core
        draw(shape, start, draft_tokens_BN)

    def _by_kernels(self, shape: Shape, start: Start, draft_tokens_BN: Tensor) -> None:
        trees, batch = self.trees, len(start.slots_B)
        draft = self.buffers[shape].first(batch)
        rows = self._rows(shape, start)
        logits_XV, state_XH = self.model.draft_logits(start.hidden_BH), start.feedback_BH
        for depth in range(1, shape.steps + 1):
            expand(
                draft,
                depth,
                logits_XV,
                start.prefix_B,
                self.target_ids_V,
                self.calibration_tables,
                start.noise,
                start.slots_B,
            )
            if depth == shape.steps:
                break
            step = draft.steps[depth]
            state_BWH = state_XH.index_select(0, step.source_BW.flatten()).unflatten(0, step.source_BW.shape)
            logits_BWV, state_BWH = rows.step(step.tokens_BW, state_BWH, step.positions_BW, step.mask_BWS)
            logits_XV, state_XH = logits_BWV.flatten(0, 1), state_BWH.flatten(0, 1)
        select_into(
            draft.candidates,
            shape.steps,
            start.slots_B,
            start.drafting_B,
            draft_tokens_BN[:, : shape.tokens - 1],
            trees.parents_SK,
            trees.tally.sums,
            self.target_ids_V,
            trees.only_chain_S if shape.top_k > 1 else None,
        )

    def _by_core(self, shape: Shape, start: Start, draft_tokens_BN: Tensor) -> None:
        trees, nodes = self.trees, shape.tokens - 1
        slots_B = torch.where(start.slots_B < 0, trees.parents_SK.shape[0] - 1, start.slots_B)
        rows = self._rows(shape, start)
        vocabulary = self.model.model.vocabulary

        def step(draft_ids_BK: Tensor, state_BKH: Tensor, depth: int, mask_BKS: Tensor) -> tuple[Tensor, Tensor]:
            position_BK = (start.prefix_B[:, None].long() + (depth - 1)).expand(draft_ids_BK.shape)
            return rows.step(vocabulary.to_target(draft_ids_BK), state_BKH, position_BK, mask_BKS)

        draft = grow_draft(
            self.model.draft_logits(start.hidden_BH),
            start.feedback_BH,
            shape.top_k,
            shape.steps,
            self._children(shape.top_k, start),
            lambda depth, depths, frontier: frontier.nodes_BK.shape[1],
            step,
            keep_logits=False,
        )
        candidates = draft.candidates
        if shape.top_k > 1:
            candidates = likeliest_path(candidates, draft.depth, trees.only_chain_S[slots_B])
        most = trees.settings.batch_nodes
        tree = select(candidates, nodes) if most is None else select_over_batch(candidates, most, nodes)
        self._keep(tree, slots_B, start.drafting_B, draft_tokens_BN)

    def _rows(self, shape: Shape, start: Start) -> Rows:
        if self.model.model.config.parallel:
            return MaskRows(self.model, start, shape.steps - 1)
        return DraftRows(self.model, start, shape.top_k * max(1, shape.steps - 1))

    def _keep(self, tree: DraftTree, slots_B: Tensor, drafting_B: Tensor, draft_tokens_BN: Tensor) -> None:
        width = tree.parents_BN.shape[1]
        parents_BN = torch.where(drafting_B[:, None], tree.parents_BN, PADDING)
        tokens_BN = self.model.model.vocabulary.to_target(tree.tokens_BN)
        draft_tokens_BN[:, :width] = torch.where(drafting_B[:, None], tokens_BN, 0)
        draft_tokens_BN[:, width:].zero_()
        parents_SK = self.trees.parents_SK
        parents_BK = torch.nn.functional.pad(parents_BN, (0, parents_SK.shape[1] - width), value=PADDING)
        parents_SK.index_copy_(0, slots_B, parents_BK)
        self.trees.tally.report_draft(parents_BN, drafting_B)

    def _children(self, top_k: int, start: Start) -> Callable[[Tensor, int], Children]:
        likely = self._coupled(top_k, start, start.noise) if start.noise else lambda x, depth: top_children(x, top_k)

        def children(logits_BKV: Tensor, depth: int) -> Children:
            best = likely(logits_BKV, depth)
            return best if self.calibration is None else self.calibration.apply(best, depth)

        return children

    def _coupled(self, top_k: int, start: Start, noise: SharedNoise) -> Callable[[Tensor, int], Children]:
        slots_B = start.slots_B.clamp(min=0)
        temperature_B = torch.where(start.slots_B < 0, 0.0, noise.temperature_S[slots_B])
        seed_B, ids_V = noise.seeds_S[slots_B], self.model.model.vocabulary.target_ids

        def children(logits_BKV: Tensor, depth: int) -> Children:
            gumbel_BV = gumbel(seed_B, start.prefix_B.long() + (depth - 1), ids_V, noise.wide)
            return coupled_children(logits_BKV, top_k, temperature_B, gumbel_BV)

        return children
