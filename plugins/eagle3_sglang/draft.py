"""SGLang's draft worker with our tree: calibrated expansion, the best nodes by chance of acceptance, exact draft attention.

Shape letters: B requests, K branches (top-k), C children of a node, N nodes selected, D draft steps, S trees told of,
H hidden size, V draft vocabulary.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from eagle3_serving.serve.shape import Shape
from eagle3_serving.tree import Candidates, Children, Frontier, expand, pool, root_frontier, select, top_children
from eagle3_serving.tree.calibrate import Calibration
from eagle3_sglang import compat
from eagle3_sglang.layout import expected_gains, parent_list

# what follows a broken score is ranked last, and stays a number: SGLang's kernels want every parent among the chosen
LEAST = -60.0


class DraftWorker(compat.EagleDraftWorker):  # type: ignore[misc]
    """Takes an `EagleDraftWorker`'s place after it was made (`adopt`), so that its making stays SGLang's."""

    calibration: Calibration | None
    shapes: tuple[Shape, ...]
    expected_SB: Tensor  # of the last draft; a fixed place, so that a CUDA graph may write it

    @classmethod
    def adopt(
        cls, worker: Any, shapes: Sequence[Shape], calibration: Calibration | None, max_batch: int
    ) -> "DraftWorker":
        worker.__class__ = cls
        worker.calibration, worker.shapes = calibration, tuple(shapes)
        if calibration is not None:
            calibration.place(worker.device, worker.topk)
        worker.expected_SB = torch.zeros(len(shapes), max_batch, device=worker.device)
        assert isinstance(worker, cls)
        return worker

    def draft_forward(self, forward_batch: Any) -> tuple[Any, Any, Any, Any]:
        """Parents, chosen candidates [B, N] and their tokens, in SGLang's form; no draft probabilities."""
        idle, watched = forward_batch.forward_mode.is_idle(), self.draft_runner.canary_manager is not None
        if idle or watched or self.topk == 1 or compat.spec_config().speculative_use_rejection_sampling:
            # a chain has nothing to select, rejection sampling wants the draft's own law, SGLang's canary its own passes
            return super().draft_forward(forward_batch)  # type: ignore[no-any-return]
        state = forward_batch.spec_info
        batch, steps = forward_batch.batch_size, self.speculative_num_steps
        slots_DX = compat.per_step_slots(forward_batch.out_cache_loc, batch, self.topk, steps)
        children = Children(self._target_ids(state.topk_index)[:, None], state.topk_p.float().log()[:, None])
        hidden_BKH = state.hidden_states[:, None]
        depths: list[Candidates] = []
        frontiers: list[Frontier] = []
        frontier = root_frontier(batch, state.topk_p.device)
        for depth in range(1, steps + 1):
            size = sum(candidates.scores_BC.shape[1] for candidates in depths)
            candidates, frontier = expand(self._ranked(children, depth), frontier, self.topk, size)
            depths.append(candidates)
            frontiers.append(frontier)
            if depth == steps:
                break
            self._follow_parents(slots_DX[: depth - 1], frontier.slots_BK)
            index_BK1 = frontier.slots_BK[..., None]
            hidden_BKH = hidden_BKH.gather(1, index_BK1.expand(-1, -1, hidden_BKH.shape[2]))
            forward_batch.input_ids = frontier.tokens_BK.flatten()
            forward_batch.out_cache_loc = slots_DX[depth - 1]
            state.hidden_states = hidden_BKH.flatten(0, 1)
            with compat.attention_of(self.draft_attn_backend.attn_backends[depth - 1], forward_batch):
                output = self.draft_runner.forward(forward_batch).logits_output
            forward_batch.positions.add_(1)
            if self.draft_runner.model_config.model_is_mrope:
                forward_batch.mrope_positions.add_(1)
            children = top_children(output.next_token_logits.unflatten(0, (batch, self.topk)), self.topk)
            children = children._replace(tokens_BKC=self._target_ids(children.tokens_BKC))
            hidden_BKH = output.hidden_states.unflatten(0, (batch, self.topk))
        tree = select(pool(depths), self.speculative_num_draft_tokens - 1)
        self.expected_SB[:, :batch] = expected_gains(depths, self.shapes)
        return parent_list(frontiers), tree.pool_BN, tree.tokens_BN, None

    def _target_ids(self, draft_ids: Tensor) -> Tensor:
        return draft_ids if self.hot_token_id is None else self.hot_token_id[draft_ids]

    def _ranked(self, children: Children, depth: int) -> Children:
        # the first depth's are SGLang's own probabilities; `top_children` left no other number that is none
        log_chance_BKC = children.log_chance_BKC
        mended = (log_chance_BKC.nan_to_num(nan=LEAST) if depth == 1 else log_chance_BKC).clamp(LEAST, 0.0)
        children = children._replace(log_chance_BKC=mended)
        return children if self.calibration is None else self.calibration.apply(children, depth)

    def _follow_parents(self, slots_DX: Tensor, parents_BK: Tensor) -> None:
        """Branch k takes over the draft keys and values of the branch its node's parent stood on.

        SGLang's draft attention shows branch k the slots of branch k at every depth, whoever wrote them; after this they
        hold the node's own ancestors.
        """
        if not len(slots_DX):
            return
        batch, width = parents_BK.shape
        slots_DBK = slots_DX.view(-1, batch, width)
        source_DBK = slots_DBK.gather(2, parents_BK.expand_as(slots_DBK))
        destination, source = slots_DBK.flatten(), source_DBK.flatten()
        for buffer in compat.draft_kv_buffers(self.draft_runner):
            buffer[destination] = buffer[source]
