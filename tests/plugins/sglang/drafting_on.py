"""A draft worker of ours on a tiny draft model, on any device: what `captures.py` captures and replays.

Shape letters: B requests, K branches (top-k), D draft steps, P cache slots, H hidden size, V vocabulary.
"""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from eagle3_sglang import compat
from eagle3_sglang.draft import DraftWorker
from sglang.srt.model_executor.forward_batch_info import ForwardMode
from torch import Tensor

from eagle3_serving.serve.shape import Shape
from eagle3_serving.tree.calibrate import Calibration

HIDDEN, VOCAB = 8, 64
CALIBRATION = Calibration(bias=(0.2, -0.1, -0.3), slope=(0.8, 0.7, 0.6), rank=(0.0, -0.2, -0.4, -0.5))


class TinyModel:
    """Each branch's state hangs on all that stands in its own cache slots, so that a wrong move of keys shows."""

    canary_manager = None
    model_config = SimpleNamespace(model_is_mrope=False)

    def __init__(self, slots: int, device: str) -> None:
        draws = torch.Generator().manual_seed(5)
        self.embed_VH = torch.randn(VOCAB, HIDDEN, generator=draws).to(device)
        self.head_HV = torch.randn(HIDDEN, VOCAB, generator=draws).to(device)
        keys_PH, values_PH = (torch.zeros(slots, HIDDEN, device=device) for _ in range(2))
        self.token_to_kv_pool = SimpleNamespace(
            start_layer=0, layer_num=1, get_kv_buffer=lambda layer: (keys_PH, values_PH)
        )
        self.slots_DX = torch.empty(0)  # of the draft in hand
        self.depth = 0  # how many of them it has written

    def forward(self, forward_batch: Any) -> Any:
        keys_PH, values_PH = self.token_to_kv_pool.get_kv_buffer(0)
        state_XH = forward_batch.spec_info.hidden_states + self.embed_VH[forward_batch.input_ids]
        state_XH = state_XH + forward_batch.positions[:, None] / 64
        keys_PH[forward_batch.out_cache_loc] = state_XH
        values_PH[forward_batch.out_cache_loc] = state_XH.sin()
        self.depth += 1
        seen_DX = self.slots_DX[: self.depth]
        seen_DXH = keys_PH[seen_DX] + values_PH[seen_DX]
        state_XH = (state_XH + seen_DXH.mean(0)).tanh()
        return SimpleNamespace(
            logits_output=SimpleNamespace(next_token_logits=state_XH @ self.head_HV, hidden_states=state_XH)
        )


class Inputs(NamedTuple):
    """What SGLang's runner writes before a replay: the last row's best tokens, its state, where and what."""

    topk_p_BK: Tensor
    topk_index_BK: Tensor
    hidden_BH: Tensor
    positions_X: Tensor
    slots: Tensor

    @classmethod
    def drawn(cls, batch: int, shape: Shape, seed: int) -> "Inputs":
        draws = torch.Generator().manual_seed(seed)
        chance_BV = torch.randn(batch, VOCAB, generator=draws).softmax(-1)
        best = chance_BV.topk(shape.top_k)
        width = batch * shape.top_k
        return cls(
            best.values,
            best.indices,
            torch.randn(batch, HIDDEN, generator=draws),
            torch.randint(0, 90, (batch,), generator=draws).repeat_interleave(shape.top_k),
            torch.randperm(width * shape.steps, generator=draws),
        )


class Drafting:
    """One tree's draft at one batch size: fixed input tensors, as a captured graph has them."""

    def __init__(
        self,
        shape: Shape,
        shapes: Sequence[Shape],
        inputs: Inputs,
        device: str,
        worker_class: type[DraftWorker] = DraftWorker,
    ) -> None:
        # a copy: on the CPU itself a device's tensors would be the caller's
        self.inputs = Inputs(*(x.clone().to(device) for x in inputs))
        self.shape, self.batch = shape, len(inputs.hidden_BH)
        self.model = TinyModel(self.batch * shape.top_k * shape.steps, device)
        worker = object.__new__(compat.EagleDraftWorker)
        worker.topk, worker.speculative_num_steps = shape.top_k, shape.steps
        worker.speculative_num_draft_tokens = shape.tokens
        worker.draft_runner, worker.device = self.model, device
        worker.hot_token_id = torch.arange(VOCAB - 1, -1, -1).to(device)
        worker.draft_attn_backend = SimpleNamespace(attn_backends=[None] * shape.steps)
        self.worker = worker_class.adopt(worker, shapes, CALIBRATION, 64)

    def draft(self) -> tuple[Tensor, ...]:
        """Parents, chosen candidates, tokens; the told gains; the keys and values as the draft leaves them."""
        inputs, shape = self.inputs, self.shape
        slots_DX = compat.per_step_slots(inputs.slots, self.batch, shape.top_k, shape.steps)
        self.model.slots_DX, self.model.depth = slots_DX, 0
        forward_batch = SimpleNamespace(
            forward_mode=ForwardMode.DECODE,
            batch_size=self.batch,
            out_cache_loc=inputs.slots,
            positions=inputs.positions_X,
            input_ids=None,
            moe_num_token_non_padded=None,
            spec_info=SimpleNamespace(
                topk_p=inputs.topk_p_BK, topk_index=inputs.topk_index_BK, hidden_states=inputs.hidden_BH
            ),
        )
        parents, chosen, tokens, _ = self.worker.draft_forward(forward_batch)
        # SGLang's runner puts them back inside the graph too
        forward_batch.positions.sub_(shape.steps - 1)
        expected_SB, written_DX = self.worker.expected_SB[:, : self.batch], slots_DX[: shape.steps - 1]
        keys_PH, values_PH = self.model.token_to_kv_pool.get_kv_buffer(0)
        return parents, chosen, tokens, expected_SB, keys_PH[written_DX], values_PH[written_DX]
