"""Training-time test (paper, section 3.2): the drafter is unrolled on its own output, as it will be when it drafts.

A parallel drafter (P-EAGLE, arXiv 2602.01469) reads masks in the place of its own output: the same rows see the same rows.
"""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from eagle3_serving.drafter.layers import Attend
from eagle3_serving.drafter.model import Drafter, DraftStep
from eagle3_serving.train.criterion import Criterion
from eagle3_serving.train.features import FeatureBatch
from eagle3_serving.train.objectives import feature_loss, target_state, token_loss

# `Drafter.step`, or the same compiled
StepFunction = Callable[[Tensor, Tensor, Tensor, Attend], DraftStep]


class TTTLoss(NamedTuple):
    """`loss` is the weighted sum over steps; `losses_S` and `accuracies_S` are per step, detached, means over `rows_S`.

    A step without a row that counts (an answer shorter than the unrolling) adds nothing and reports 0. `accepted`: draft
    tokens that are the answer's own, each after only such ones, of `chains` begun at every row.
    """

    loss: Tensor
    losses_S: Tensor
    accuracies_S: Tensor
    rows_S: tuple[int, ...]
    accepted: Tensor
    chains: int

    @property
    def rows(self) -> int:
        return self.rows_S[0]


class UnrolledAttention:
    """The paper's attention for training: step 0 is causal over true features, each later step adds its own diagonal.

    Row r at step n stands at position i = start + r and sees the true rows at positions <= i - n and, of each
    earlier step s = 1..n, the one row of its own chain, at r - (n - s). No L x L x steps mask is ever built.
    """

    def __init__(self, k_BLKD: Tensor, v_BLKD: Tensor, positions_BR: Tensor, window: int | None = None) -> None:
        """`window`: positions that a row looks back on, its own among them; None: all."""
        self.k_BKLD, self.v_BKLD = k_BLKD.transpose(1, 2), v_BLKD.transpose(1, 2)
        self.positions_BR, self.window = positions_BR, window
        self.columns_L = torch.arange(k_BLKD.shape[1], device=k_BLKD.device)
        self.chain: list[tuple[Tensor, Tensor]] = []
        self.step = 0

    def __call__(self, layer: int, q_BRAD: Tensor, k_BRKD: Tensor, v_BRKD: Tensor) -> Tensor:
        if self.step > 0:  # at step 0 a row's own key is among the true ones
            self.chain.append((k_BRKD, v_BRKD))
        groups = q_BRAD.shape[2] // self.k_BKLD.shape[1]
        scale = 1 / math.sqrt(q_BRAD.shape[-1])
        q_BKGRD = torch.unflatten(q_BRAD, 2, (-1, groups)).permute(0, 2, 3, 1, 4) * scale
        shape = q_BKGRD.shape
        scores = torch.unflatten(q_BKGRD.flatten(2, 3) @ self.k_BKLD.transpose(-1, -2), 2, (groups, shape[3]))
        visible_BRL = self.columns_L <= (self.positions_BR - self.step)[..., None]
        if self.window is not None:
            visible_BRL &= self.columns_L > (self.positions_BR - self.window)[..., None]
        columns = [scores.masked_fill(~visible_BRL[:, None, None], -torch.inf)]
        shifted = [
            (shift(k, len(self.chain) - 1 - s), shift(v, len(self.chain) - 1 - s))
            for s, (k, v) in enumerate(self.chain)
        ]
        columns += [(q_BKGRD * k.transpose(1, 2)[:, :, None]).sum(-1, keepdim=True) for k, _ in shifted]
        weights = torch.cat(columns, dim=-1).softmax(dim=-1)
        true_L = len(self.columns_L)
        out = torch.unflatten(weights[..., :true_L].flatten(2, 3) @ self.v_BKLD, 2, (groups, shape[3]))
        for s, (_, v) in enumerate(shifted):
            out = out + weights[..., true_L + s, None] * v.transpose(1, 2)[:, :, None]
        self.step += 1
        mixed: Tensor = out.permute(0, 3, 1, 2, 4).flatten(2, 3)
        return mixed


class TrueRows:
    """Causal attention over the true rows, which keeps what each layer caches of them."""

    def __init__(self, window: int | None) -> None:
        self.window = window
        self.kept: list[tuple[Tensor, Tensor]] = []

    def __call__(self, layer: int, q_BLAD: Tensor, k_BLKD: Tensor, v_BLKD: Tensor) -> Tensor:
        self.kept.append((k_BLKD, v_BLKD))
        q, k, v = (x.transpose(1, 2) for x in (q_BLAD, k_BLKD, v_BLKD))
        mask = torch.ones(q.shape[2], q.shape[2], dtype=torch.bool, device=q.device).tril()
        if self.window is not None:
            mask = mask.triu(1 - self.window)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True).transpose(1, 2)


def shift(x_BR: Tensor, by: int) -> Tensor:
    """Move rows down by `by`, zeros above: row r receives row r - by."""
    return x_BR if by == 0 else F.pad(x_BR, (0, 0) * (x_BR.dim() - 2) + (by, 0))[:, :-by]


class UnrolledStep(NamedTuple):
    """`hidden_NH` of the rows that count at this step (a mask [B, R]); `mask_BR` says which those are."""

    hidden_NH: Tensor
    mask_BR: Tensor


def unroll(
    drafter: Drafter, batch: FeatureBatch, counted_BR: Tensor, steps: int, draft: StepFunction | None = None
) -> Iterator[UnrolledStep]:
    """`steps` chained draft steps at every row of every answer, each fed the one before; of a parallel drafter its masks, which
    one pass drafts. `draft`: the drafter's own step unless told.

    Of the rows in `counted_BR` those from row `step` on count, where a chain of so many steps can have begun.
    """
    config, draft = drafter.config, draft or drafter.step
    length, rows = batch.tokens_BL.shape[1], batch.final_BRH.shape[1]
    offsets_R = torch.arange(rows, device=batch.tokens_BL.device)
    positions_BR = (batch.start_B[:, None] + offsets_R).clamp(max=length - 2)
    fused_BLH = drafter.fuse(batch.aux_BLF)[:, : length - 1]
    next_BL = batch.tokens_BL[:, 1:]
    all_BL = torch.arange(length - 1, device=next_BL.device).expand_as(next_BL)
    true_rows = TrueRows(config.sliding_window)
    if config.num_layers == 1:
        # keys and values of step 0 at every row, prompt included: all that a prompt row is needed for
        true_rows.kept.append(drafter.first_layer.keys_values(drafter.embed_tokens(next_BL), fused_BLH, all_BL))
    else:  # what a later layer caches of a row hangs on all rows before it
        drafter.step(next_BL, fused_BLH, all_BL, true_rows)
    layers = [UnrolledAttention(k, v, positions_BR, config.sliding_window) for k, v in true_rows.kept]

    def attend(layer: int, q_BRAD: Tensor, k_BRKD: Tensor, v_BRKD: Tensor) -> Tensor:
        return layers[layer](layer, q_BRAD, k_BRKD, v_BRKD)

    tokens_BR = next_BL.gather(1, positions_BR)
    hidden_BRH = fused_BLH.gather(1, positions_BR[..., None].expand(-1, -1, fused_BLH.shape[-1]))
    nodes_BR, state_BRH = tokens_BR, hidden_BRH
    for step in range(steps):
        out = draft(tokens_BR, hidden_BRH, positions_BR, attend)
        before_BRH, state_BRH = state_BRH, out.hidden_BLH
        if step and config.causal_head:
            state_BRH = drafter.follow(nodes_BR, shift(before_BRH, 1), state_BRH)
        mask_BR = counted_BR & (offsets_R >= step)
        yield UnrolledStep(state_BRH[mask_BR], mask_BR)
        if not config.parallel:
            hidden_BRH = shift(out.feedback_BLH, 1)
        elif step == 0:
            masked_1F, token_1 = drafter.masks(1)
            tokens_BR, hidden_BRH = token_1.expand_as(tokens_BR), drafter.fuse(masked_1F).expand_as(hidden_BRH)


def ttt_loss(
    drafter: Drafter,
    batch: FeatureBatch,
    target_head_VH: Tensor,
    to_draft_V: Tensor,
    steps: int,
    decay: float,
    criterion: Criterion | None = None,
    target_norm_H: Tensor | None = None,
    softcap: float | None = None,
    draft: StepFunction | None = None,
) -> TTTLoss:
    """The loss of `steps` chained draft steps, weighted decay**step, mean over the rows that count.

    Labels are the target's distribution renormalised over the draft vocabulary, `target_head_VH` being the target's
    head restricted to it; a row counts where the answer's own next token lies in the draft vocabulary. The default
    criterion is the paper's soft cross-entropy; a regression on features needs the target's final norm. `softcap`: the
    target's logits are bent to within it. `draft`: see `unroll`.
    """
    criterion = criterion or Criterion()
    wanted_BR = to_draft_V[batch.next_BR]
    counted_BR = batch.taught_BR & (wanted_BR >= 0)
    with torch.no_grad():
        scores_BRV = batch.final_BRH @ target_head_VH.T
        if softcap is not None:  # Gemma's
            scores_BRV = softcap * (scores_BRV / softcap).tanh()
        labels_BRV, best_BR = scores_BRV.softmax(dim=-1), scores_BRV.argmax(dim=-1)
    total = batch.aux_BLF.new_zeros(())
    losses, accuracies, rows = [], [], []
    alive_BR, accepted = batch.taught_BR, torch.zeros_like(total)
    for step, (hidden_NH, mask_BR) in enumerate(unroll(drafter, batch, counted_BR, steps, draft)):
        rows.append(len(hidden_NH))
        logits_NV, labels_NV = drafter.logits(hidden_NH), labels_BRV[mask_BR]
        if not rows[
            -1
        ]:  # a mean over nothing would be NaN; where weights are in shares, every process runs every layer
            total = total + 0.0 * logits_NV.sum()
            alive_BR = torch.zeros_like(alive_BR)
            losses.append(torch.zeros_like(total.detach()))
            accuracies.append(torch.zeros_like(total.detach()))
            continue
        loss = token_loss(logits_NV, labels_NV, criterion.objective)
        losses.append(loss.detach().float())
        hit_BR = torch.zeros_like(mask_BR)
        drafted_N = logits_NV.max(-1).indices  # a third of argmax's time on a CPU in bf16
        hit_BR[mask_BR] = drafted_N == wanted_BR[mask_BR]
        # the chain that stands at row r now stood at row r - 1 one step before
        alive_BR = hit_BR & (alive_BR if step == 0 else shift(alive_BR, 1))
        accepted = accepted + alive_BR.sum()
        accuracies.append((drafted_N == best_BR[mask_BR]).float().mean())
        loss = criterion.token_weight * loss
        if criterion.feature_weight:
            assert target_norm_H is not None
            state_NH = target_state(batch.final_BRH[mask_BR], target_norm_H)
            loss = loss + criterion.feature_weight * feature_loss(hidden_NH, state_NH)
        total = total + decay**step * loss
    return TTTLoss(
        total, torch.stack(losses), torch.stack(accuracies), tuple(rows), accepted, int(batch.taught_BR.sum())
    )
