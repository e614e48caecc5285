"""A small random drafter as `TreeDrafter` takes it, without a text before its drafts, on any device.

Shape letters: B requests, K nodes, H draft hidden size, S request slots.
"""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from drafters import HIDDEN, VOCAB, known
from eagle3_vllm import drafting
from eagle3_vllm.drafting import Start, TreeDrafter
from eagle3_vllm.kernels.noise import SharedNoise
from torch import Tensor

from eagle3_serving.drafter import Drafter
from eagle3_serving.serve.shape import Shape
from eagle3_serving.tree.calibrate import Calibration

SLOTS = 5
SHAPE = Shape(3, 4, 9)


class Alone:
    """A prefix of no rows."""

    def attend(self, q_BKAD: Tensor, k_BSXD: Tensor, v_BSXD: Tensor, mask_BKS: Tensor, past: int) -> Tensor:
        q, k, v = (x.transpose(1, 2) for x in (q_BKAD, k_BSXD, v_BSXD))
        scores = q @ k.repeat_interleave(q.shape[1] // k.shape[1], 1).transpose(-1, -2)
        weights = scores.masked_fill(~mask_BKS[:, None], -torch.inf).softmax(-1)
        return (weights @ v.repeat_interleave(q.shape[1] // v.shape[1], 1)).transpose(1, 2)


def small_drafter(mapped: bool = True, **changes: Any) -> Drafter:
    """`mapped`: it knows some of the target's tokens, else all."""
    of = known() if mapped else known(draft_vocab_size=VOCAB)
    drafter = Drafter(replace(of.config, **changes), of.ids)
    generator = torch.Generator().manual_seed(3)
    for parameter in drafter.parameters():
        torch.nn.init.normal_(parameter, std=0.4, generator=generator)
    drafter.requires_grad_(False)
    return drafter


def tree_drafter(
    monkeypatch: pytest.MonkeyPatch,
    drafter: Drafter,
    device: torch.device | str,
    by_kernels: bool,
    calibration: Calibration | None = None,
) -> TreeDrafter:
    """Its `trees.parents_SK` and the tokens that `drawn` is given are what it draws."""
    monkeypatch.setattr(drafting, "prefix_of", lambda *_: Alone())
    trees: Any = SimpleNamespace(
        by_kernels=by_kernels,
        device=torch.device(device),
        shapes={SHAPE.tokens: SHAPE},
        parents_SK=torch.full((SLOTS + 1, SHAPE.tokens - 1), -1, device=device),
        only_chain_S=torch.zeros(SLOTS + 1, dtype=torch.bool, device=device),
        settings=SimpleNamespace(batch_nodes=None),
        tally=SimpleNamespace(
            report_draft=lambda *_: None, sums=torch.zeros(5, dtype=torch.long, device=torch.device(device))
        ),
    )
    model: Any = SimpleNamespace(
        model=drafter.to(device),
        attention=[None],
        window=None,
        draft_logits=drafter.logits,
        combine_hidden_states=drafter.fuse,
        whole_vocabulary=len(drafter.vocabulary.target_ids) == VOCAB,
    )
    return TreeDrafter(model, trees, calibration)


def start(slots_B: Tensor, noise: SharedNoise | None, prefix_B: Tensor | None = None) -> Start:
    """Requests in these slots, each with a state and a length of text that follow from its place."""
    batch, device = len(slots_B), slots_B.device
    state_BH = torch.randn(batch, HIDDEN, generator=torch.Generator().manual_seed(1)).to(device)
    prefix_B = 7 + 3 * torch.arange(batch, device=device) if prefix_B is None else prefix_B
    return Start(state_BH, state_BH, [slots_B], prefix_B, slots_B, slots_B >= 0, 64, noise)


def drawn(drafter: TreeDrafter, begun: Start) -> tuple[Tensor, Tensor]:
    """Tokens and parents [B, K] of the trees that are drafted."""
    tokens_BK = torch.zeros(len(begun.slots_B), SHAPE.tokens - 1, dtype=torch.long, device=begun.slots_B.device)
    drafter.draw(SHAPE, begun, tokens_BK)
    return tokens_BK, drafter.trees.parents_SK.index_select(0, begun.slots_B.clamp(min=0))
