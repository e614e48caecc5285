"""A start that needs no gradient: ridge regression of the target's next state on what the drafter reads.

The state sought is y = the target's final hidden state at i + 1, rms-normalised. It is fitted as
y ~ W_a aux_i + W_e norm(embedding_{i+1}). W_a becomes `fc`, whose output is the residual; W_e passes through
attention heads that look at their own position, at the rank which these heads' values can carry.

EAGLE-3.1 (arXiv 2605.09992) norms each feature before `fc` and feeds the post-norm state back. There the fit is of the normed
features, and the final norm's weight moves into the head, so that what is fed back is the very state that `fc` gives.

A drafter in the manner of EAGLE-1/2 keeps the feature itself as its state: there `fc` is fitted to the state at i, and
those heads carry what leads from it to the next one.
"""

import torch
from torch import Tensor

from eagle3_serving.drafter.decoder import DraftAttention
from eagle3_serving.drafter.layers import weight_of
from eagle3_serving.drafter.model import Drafter
from eagle3_serving.train.features import FeatureBatch
from eagle3_serving.train.objectives import target_state


class Moments:
    """Second moments of (aux, embedding) against the state sought, gathered batch by batch."""

    def __init__(self, inputs: int, outputs: int, device: torch.device) -> None:
        self.xx = torch.zeros(inputs, inputs, device=device)
        self.xy = torch.zeros(inputs, outputs, device=device)
        self.rows = 0

    def add(self, x_NI: Tensor, y_NO: Tensor) -> None:
        self.xx += x_NI.T @ x_NI
        self.xy += x_NI.T @ y_NO
        self.rows += len(x_NI)

    def solve(self, ridge: float) -> Tensor:
        """[I, O] in fp32; the ridge is relative to the mean diagonal."""
        xx = self.xx.double() / self.rows
        xx.diagonal().add_(ridge * xx.diagonal().mean())
        solution: Tensor = torch.linalg.solve(xx, self.xy.double() / self.rows).float()
        return solution


def aux_scale(batches: list[FeatureBatch]) -> Tensor:
    """Root mean square of each auxiliary feature [F] over the response rows."""
    rows = torch.cat([_rows(batch)[0] for batch in batches])
    return rows.square().mean(0).sqrt().clamp(min=1e-6)


@torch.no_grad()
def scale_feature_norms(drafter: Drafter, batches: list[FeatureBatch]) -> None:
    """Set the norms of features so that each number that `fc` reads has rms 1, in place: what `aux_scale` does where there
    are none."""
    rows_NF = torch.cat([_rows(batch)[0] for batch in batches])
    scale_F = drafter.fusion.normalise(rows_NF).square().mean(0).sqrt().clamp(min=1e-3)
    for norm, part in zip(drafter.fusion.fc_norm, scale_F.chunk(drafter.config.num_aux), strict=True):
        weight_of(norm).div_(part)


def _rows(batch: FeatureBatch) -> tuple[Tensor, Tensor, Tensor]:
    """aux_i [N, F], token i + 1 [N], final state at i + 1 [N, H] of every response row."""
    aux, tokens, final = [], [], []
    for b, (start, rows) in enumerate(zip(batch.start_B.tolist(), batch.rows_B.tolist(), strict=True)):
        aux.append(batch.aux_BLF[b, start : start + rows])
        tokens.append(batch.tokens_BL[b, start + 1 : start + 1 + rows])
        final.append(batch.final_BRH[b, :rows])
    return torch.cat(aux), torch.cat(tokens), torch.cat(final)


@torch.no_grad()
def closed_form_start(
    drafter: Drafter,
    batches: list[FeatureBatch],
    norm_weight_H: Tensor,
    head_VH: Tensor,
    keep_feature: bool = False,
) -> None:
    """Set `fc`, the final norm and head, and self-looking heads of `drafter` from `batches`, in place.

    `drafter.fuse` must read features of rms 1 (`aux_scale`, or `scale_feature_norms`); `head_VH` is the target's head restricted to
    the draft vocabulary and `norm_weight_H` the target's final norm. `keep_feature`: `fc` gives the state at i.
    """
    config, attention = drafter.config, drafter.first_layer.self_attn
    size, features = config.hidden_size, config.num_aux * config.target_hidden_size
    if keep_feature:
        _fit_feature(drafter, batches, norm_weight_H)
    embedding_VH = torch.nn.functional.rms_norm(weight_of(drafter.embed_tokens), (size,), eps=config.rms_norm_eps)
    beside = size if keep_feature else features
    moments = Moments(beside + size, size, embedding_VH.device)
    carried = []
    for batch in batches:
        aux_NF, tokens_N, final_NH = _rows(batch)
        aux_NF = drafter.fusion.normalise(aux_NF)
        state_NH, seen_NH = target_state(final_NH, norm_weight_H), embedding_VH[tokens_N]
        if keep_feature:
            fused_NH = drafter.fusion.fc(aux_NF)
            aux_NF, state_NH = drafter.first_layer.hidden_norm(fused_NH), state_NH - fused_NH
        # what the heads can read: [embedding] or [embedding, feature], as the layer's own input
        carried.append(torch.cat([seen_NH, aux_NF], dim=-1) if keep_feature else seen_NH)
        moments.add(torch.cat([aux_NF, seen_NH], dim=-1), state_NH)
    solution = moments.solve(ridge=0.01)
    if config.norm_output:
        weight_of(drafter.norm).fill_(1.0)
        weight_of(drafter.lm_head).copy_(head_VH * norm_weight_H)
    else:
        weight_of(drafter.norm).copy_(norm_weight_H)
        weight_of(drafter.lm_head).copy_(head_VH)
    if keep_feature:
        map_HI = torch.cat([solution[beside:], solution[:beside]]).T
    else:
        weight_of(drafter.fusion.fc).copy_(solution[:features].T)
        map_HI = solution[features:].T

    read_NI = torch.cat(carried)
    gram_II = read_NI.T @ read_NI / len(read_NI)
    groups = config.num_attention_heads // config.num_key_value_heads
    looking = max(1, config.num_key_value_heads - 1)  # one group stays free to learn to look elsewhere
    _look_at_self(attention, gram_II[:size, :size], read_NI[:, :size].mean(0), range(looking), groups, config.head_dim)
    carry(attention, map_HI, gram_II, looking, groups, config.head_dim)


def _fit_feature(drafter: Drafter, batches: list[FeatureBatch], norm_weight_H: Tensor) -> None:
    """Set `fc` so that the fused state is the target's final state at the same position."""
    config = drafter.config
    moments = Moments(config.num_aux * config.target_hidden_size, config.hidden_size, norm_weight_H.device)
    for batch in batches:
        for b, (start, rows) in enumerate(zip(batch.start_B.tolist(), batch.rows_B.tolist(), strict=True)):
            # `final` begins one position after the first response row
            state_NH = target_state(batch.final_BRH[b, : rows - 1], norm_weight_H)
            moments.add(drafter.fusion.normalise(batch.aux_BLF[b, start + 1 : start + rows]), state_NH)
    weight_of(drafter.fusion.fc).copy_(moments.solve(ridge=1e-4).T)


def _look_at_self(
    attention: DraftAttention, gram_HH: Tensor, mean_H: Tensor, kv_heads: range, groups: int, head_dim: int
) -> None:
    """Give the first query head of each group and its key head one constant vector, so that rotary distance decides.

    A direction w with w . norm(embedding) ~ 1 for every token makes it constant; the score at distance d is then
    proportional to the sum over pairs of cos(theta_j d), which is largest at d = 0.
    """
    size = len(mean_H)
    ridge = 1e-3 * gram_HH.diagonal().mean()
    w_H = torch.linalg.solve(gram_HH + ridge * torch.eye(size, device=gram_HH.device), mean_H)
    pairs = head_dim // 2
    pattern = torch.zeros(head_dim, device=gram_HH.device)
    pattern[: pairs // 2] = 1.0  # the fast half of the pairs: sharp in position
    strength = (12.0 * head_dim**0.5 / (pairs // 2)) ** 0.5
    for kv in kv_heads:
        for weight, head in ((weight_of(attention.q_proj), kv * groups), (weight_of(attention.k_proj), kv)):
            block = weight[head * head_dim : (head + 1) * head_dim]
            block.zero_()
            block[:, :size] = strength * pattern[:, None] * w_H


def carry(attention: DraftAttention, map_HI: Tensor, gram_II: Tensor, heads: int, groups: int, head_dim: int) -> None:
    """Factor the map from the layer's input through the values of the self-looking heads, best in the data's metric."""
    size = map_HI.shape[1]
    rank = heads * head_dim
    values, vectors = torch.linalg.eigh(
        gram_II.double() + 1e-6 * torch.eye(size, dtype=torch.double, device=gram_II.device)
    )
    root = (vectors * values.clamp(min=1e-9).sqrt()) @ vectors.T
    inverse = (vectors / values.clamp(min=1e-9).sqrt()) @ vectors.T
    u, s, vt = torch.linalg.svd(map_HI.double() @ root)
    up = (u[:, :rank] * s[:rank].sqrt()).float()
    down = (s[:rank, None].sqrt() * (vt[:rank] @ inverse)).float()
    v_weight, o_weight = weight_of(attention.v_proj), weight_of(attention.o_proj)
    for kv in range(heads):
        rows = slice(kv * head_dim, (kv + 1) * head_dim)
        query = kv * groups
        v_weight[rows] = 0
        v_weight[rows, :size] = down[rows]
        o_weight[:, kv * groups * head_dim : (kv + 1) * groups * head_dim] = 0
        o_weight[:, query * head_dim : (query + 1) * head_dim] = up[:, rows]
