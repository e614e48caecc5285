"""A draft on vLLM: rows over the drafter's own paged KV, and the tree of every request of a batch from first to last depth.

The draft rows' keys and values never enter the pages: they are wanted for one draft only, and no slot is needed for them.

Shape letters: B requests, K frontier nodes, S draft rows so far, N nodes, A query heads, X key-value heads, H draft hidden
size, D head size, V draft vocabulary.
"""

from typing import Any

import torch
from torch import Tensor

from eagle3_serving.serve.shape import Shape
from eagle3_serving.tree import (
    PADDING,
    Children,
    DraftTree,
    grow_draft,
    likeliest_path,
    select,
    select_over_batch,
    top_children,
)
from eagle3_serving.tree.calibrate import Calibration
from eagle3_vllm.architecture import Eagle3ServingForCausalLM
from eagle3_vllm.attention.paged import Prefix, prefix_of
from eagle3_vllm.trees import Trees


class DraftRowsOverPages:
    """A `DraftRows` for one draft of at most `rows` draft rows. `prefix_B` rows that each request has in the drafter's
    pages, none above `longest`; each draft row sees its request's prefix, its ancestors among the draft, and itself."""

    def __init__(
        self, model: Eagle3ServingForCausalLM, tables: list[Tensor], prefix_B: Tensor, longest: int, rows: int
    ) -> None:
        self.model, self.prefix_B, self.rows = model, prefix_B, rows
        self.prefixes: list[Prefix] = [
            prefix_of(layer, table_BN, prefix_B, longest) for layer, table_BN in zip(model.attention, tables, strict=True)
        ]
        self.tails: list[tuple[Tensor, Tensor] | None] = [None] * len(self.prefixes)
        self.size = 0

    def __call__(self, draft_ids_BK: Tensor, state_BKH: Tensor, depth: int, mask_BKS: Tensor) -> tuple[Tensor, Tensor]:
        drafter = self.model.model
        position_BK = (self.prefix_B[:, None].long() + (depth - 1)).expand(draft_ids_BK.shape)
        end = mask_BKS.shape[2]

        def attend_over(layer: int, q_BKAD: Tensor, k_BKXD: Tensor, v_BKXD: Tensor) -> Tensor:
            tail = self.tails[layer]
            if tail is None:
                shape = k_BKXD.shape[0], self.rows, *k_BKXD.shape[2:]
                tail = self.tails[layer] = k_BKXD.new_empty(shape), v_BKXD.new_empty(shape)
            for kept, new in zip(tail, (k_BKXD, v_BKXD), strict=True):
                kept[:, self.size : end] = new
            return self.prefixes[layer].attend(q_BKAD, tail[0][:, :end], tail[1][:, :end], mask_BKS)

        tokens_BK = drafter.vocabulary.to_target(draft_ids_BK)
        step = drafter.step(tokens_BK, state_BKH, position_BK, attend_over)
        self.size = end
        logits_TV = self.model.draft_logits(step.hidden_BLH.flatten(0, 1))
        return logits_TV.unflatten(0, draft_ids_BK.shape), step.feedback_BLH


class TreeDrafter:
    """Draws trees. All that it computes stands in one CUDA graph a tree and batch size: no value is read on the host."""

    def __init__(self, model: Eagle3ServingForCausalLM, trees: Trees, calibration: Calibration | None) -> None:
        self.model, self.trees, self.calibration = model, trees, calibration
        if calibration is not None:
            for shape in trees.shapes.values():
                calibration.place(trees.device, min(shape.top_k, model.model.config.draft_vocab_size))

    def draw(
        self,
        shape: Shape,
        hidden_BH: Tensor,
        feedback_BH: Tensor,
        tables: list[Tensor],
        prefix_B: Tensor,
        slots_B: Tensor,
        drafting_B: Tensor,
        longest: int,
        draft_tokens_BN: Tensor,
    ) -> None:
        """The tree of every request into `draft_tokens_BN` (target ids) and, by its slot, into `trees.parents_SK`.

        `hidden_BH`, `feedback_BH`: what the drafter's pass gave at each request's last row. `tables`: the block table of
        each of the drafter's layers. Where not `drafting_B` (a prompt that is not whole, padding) nothing is drafted.
        """
        trees, nodes = self.trees, shape.tokens - 1
        slots_B = torch.where(slots_B < 0, trees.parents_SK.shape[0] - 1, slots_B)
        rows = DraftRowsOverPages(self.model, tables, prefix_B, longest, shape.top_k * max(1, shape.steps - 1))
        draft = grow_draft(
            self.model.draft_logits(hidden_BH),
            feedback_BH,
            shape.top_k,
            shape.steps,
            lambda logits_BKV, depth: self._children(logits_BKV, shape.top_k, depth),
            lambda depth, depths, frontier: frontier.nodes_BK.shape[1],
            rows,
            keep_logits=False,
        )
        candidates = draft.candidates
        if shape.top_k > 1:
            candidates = likeliest_path(candidates, draft.depth, trees.only_chain_S[slots_B])
        most = trees.settings.batch_nodes
        tree = select(candidates, nodes) if most is None else select_over_batch(candidates, most, nodes)
        self._keep(tree, slots_B, drafting_B, draft_tokens_BN)

    def _keep(self, tree: DraftTree, slots_B: Tensor, drafting_B: Tensor, draft_tokens_BN: Tensor) -> None:
        width = tree.parents_BN.shape[1]
        parents_BN = torch.where(drafting_B[:, None], tree.parents_BN, PADDING)
        tokens_BN = self.model.model.vocabulary.to_target(tree.tokens_BN)
        draft_tokens_BN[:, :width] = torch.where(drafting_B[:, None], tokens_BN, 0)
        draft_tokens_BN[:, width:] = 0
        parents_SK = self.trees.parents_SK
        parents_BK = torch.nn.functional.pad(parents_BN, (0, parents_SK.shape[1] - width), value=PADDING)
        parents_SK.index_copy_(0, slots_B, parents_BK)
        self.trees.tally.drafted(parents_BN, drafting_B)

    def _children(self, logits_BKV: Tensor, top_k: int, depth: int) -> Children:
        children = top_children(logits_BKV, top_k)
        return children if self.calibration is None else self.calibration.apply(children, depth)
