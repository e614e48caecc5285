"""A parallel drafter (P-EAGLE, arXiv 2602.01469): learned masks stand where no token is drafted yet, and one pass drafts a chain.

It is begun from a drafter that goes a token a pass. A causal head (`drafter.causal`) lets children depend on their node's token.
Layers beyond the first drafter's own add nothing at first: the first depth is what it was, and what a mask cannot read
from the true rows of one layer it learns to read from the rows of the next.
"""

from dataclasses import replace

import torch
from torch import Tensor, nn

from eagle3_serving.drafter import Drafter
from eagle3_serving.drafter.decoder import DraftAttention, DraftLayer
from eagle3_serving.drafter.layers import weight_of
from eagle3_serving.drafter.rope import inverse_frequencies
from eagle3_serving.engine.target import Target
from eagle3_serving.train.closed_form import Moments, carry
from eagle3_serving.train.features import FeatureBatch
from eagle3_serving.train.ttt import UnrolledStep, shift, unroll

_SHARPNESS = 25.0  # the largest score of a mask's look at the last true row


def mask_token(target: Target) -> int:
    """The token whose embedding a mask has: one that no text is drafted after."""
    padding = target.model.config.pad_token_id
    return int(padding) if padding is not None else min(target.eos_ids, default=0)


def as_parallel(drafter: Drafter, mask_token_id: int, layers: int, causal_head: bool = False) -> Drafter:
    """The same with masks that are still to begin (`begin_masks`), layers beyond its own that add next to nothing, and a causal
    head that adds nothing yet (`begin_following`)."""
    own = drafter.config.num_layers
    config = replace(
        drafter.config,
        num_layers=max(layers, own),
        mask_token_id=mask_token_id,
        causal_head=causal_head,
        norm_output=False,
    )
    made = Drafter(config, drafter.vocabulary.target_ids.cpu())
    fresh = [*made.layers[own:].named_parameters()]
    if made.causal is not None:
        fresh += made.causal.named_parameters()
    for name, parameter in fresh:
        if parameter.dim() == 2:
            nn.init.normal_(parameter, std=0.002 if name.endswith("down_proj.weight") else 0.02)
        if name.endswith("o_proj.weight") or name == "proj.weight":
            nn.init.zeros_(parameter)
    made.load_state_dict(drafter.state_dict(), strict=False)
    return made.to(drafter.vocabulary.target_ids.device)


@torch.no_grad()
def begin_masks(drafter: Drafter, batches: list[FeatureBatch]) -> None:
    """Masks that are still to begin become the mean feature of the response rows, as `drafter` reads them; in place."""
    mask_F = drafter.mask_hidden
    if mask_F is not None and not bool(mask_F.any()):
        rows = [
            batch.aux_BLF[b, start : start + count]
            for batch in batches
            for b, (start, count) in enumerate(zip(batch.start_B.tolist(), batch.rows_B.tolist(), strict=True))
        ]
        mask_F.copy_(torch.cat(rows).mean(0))


@torch.no_grad()
def begin_reading(drafter: Drafter, batches: list[FeatureBatch], depth: int) -> None:
    """Let masks look at the last true row in the first layer of those that add nothing yet, in place: without gradients, since
    from a start where they see no row apart from others they were seen to learn little more than what tokens are frequent.

    What that row's state foretells of the true rows' states to come is a ridge regression, over all depths alike; it passes
    through the heads' values (`closed_form.carry`).
    """
    config = drafter.config
    layers = [layer for layer in drafter.layers if isinstance(layer, DraftLayer)]
    fresh = next((layer for layer in layers[1:] if not bool(weight_of(layer.self_attn.o_proj).any())), None)
    if fresh is None or depth == 1:
        return
    true, masked, ahead = [], [], []
    for batch in batches:
        first, *later = unroll(drafter, batch, batch.taught_BR, depth)
        said_BRH = _spread(first)
        for step, (hidden_NH, mask_BR) in enumerate(later, 1):
            true.append(shift(said_BRH, step)[mask_BR])
            masked.append(hidden_NH)
            ahead.append(said_BRH[mask_BR] - hidden_NH)
    true_NH, masked_NH = fresh.hidden_norm(torch.cat(true)), fresh.hidden_norm(torch.cat(masked))
    attention, groups = fresh.self_attn, config.num_attention_heads // config.num_key_value_heads
    _look_at_true(drafter, attention, true_NH, masked_NH, depth)
    # what all rows have in common is left out: a true row sees the mean of many, and is to stay what it is
    mean_H = torch.nn.functional.normalize(true_NH.mean(0), dim=0)
    own_NH = true_NH - (true_NH @ mean_H)[:, None] * mean_H
    wanted_NH = torch.cat(ahead)
    moments = Moments(config.hidden_size, config.hidden_size, true_NH.device)
    moments.add(own_NH, wanted_NH - wanted_NH.mean(0))
    map_HI = moments.solve(ridge=0.01).T
    map_HI = map_HI - torch.outer(map_HI @ mean_H, mean_H)
    gram_II = true_NH.T @ true_NH / len(true_NH)
    carry(attention, map_HI, gram_II, config.num_key_value_heads, groups, config.head_dim)


def _look_at_true(drafter: Drafter, attention: DraftAttention, true_NH: Tensor, masked_NH: Tensor, depth: int) -> None:
    """Give the first query head of each group and its key head one constant vector, the query at masks and the key at true rows
    alone: rotary distance then decides which true row is seen, and the last is the nearest."""
    config, head_dim = drafter.config, drafter.config.head_dim
    both_NH = torch.cat([true_NH, masked_NH])
    is_true_N = torch.cat([true_NH.new_ones(len(true_NH)), true_NH.new_zeros(len(masked_NH))])
    told = Moments(config.hidden_size, 2, true_NH.device)
    told.add(both_NH, torch.stack([is_true_N, 1 - is_true_N], dim=1))
    key_H, query_H = told.solve(ridge=1e-3).T
    # pairs of dimensions whose cosine falls all the way to the farthest mask, neither at once nor hardly at all
    turn = inverse_frequencies(config.rope, head_dim).to(true_NH.device) * max(depth - 1, 1)
    near = (turn > 0.6) & (turn < 2.0)
    pairs = near if bool(near.any()) else turn == turn[(turn - 1).abs().argmin()]
    pattern = torch.zeros(head_dim, device=true_NH.device)
    pattern[: len(pairs)] = pairs.float()
    strength = (_SHARPNESS * head_dim**0.5 / float(pairs.sum())) ** 0.5
    groups = config.num_attention_heads // config.num_key_value_heads
    for kv in range(config.num_key_value_heads):
        for weight, head, seen_H in (
            (weight_of(attention.q_proj), kv * groups, query_H),
            (weight_of(attention.k_proj), kv, key_H),
        ):
            weight[head * head_dim : (head + 1) * head_dim] = strength * pattern[:, None] * seen_H


@torch.no_grad()
def begin_following(drafter: Drafter, batches: list[FeatureBatch], depth: int) -> None:
    """Let a causal head that adds nothing yet foretell, from a node's token and its parent's state, what the drafter's state would be
    had it read the true row, in place: a ridge regression on what masks leave open, over all depths alike. Below the
    first a parent's state is such a head's own, so a first map makes what the second is fitted on."""
    head = drafter.causal
    if head is None or bool(weight_of(head.proj).any()) or depth == 1:
        return
    size = drafter.config.hidden_size
    seen: list[tuple[Tensor, Tensor, Tensor]] = []
    hook = head.register_forward_pre_hook(lambda _, given: seen.append(given))
    for _ in range(2):
        moments = Moments(2 * size, size, batches[0].aux_BLF.device)
        for batch in batches:
            seen.clear()
            first, *later = unroll(drafter, batch, batch.taught_BR, depth)
            true_BRH = _spread(first)
            for (embedding_BRH, before_BRH, masked_BRH), (_, mask_BR) in zip(seen, later, strict=True):
                read_NI = head.read(embedding_BRH[mask_BR], before_BRH[mask_BR])
                moments.add(read_NI, true_BRH[mask_BR] - masked_BRH[mask_BR])
        weight_of(head.proj).copy_(moments.solve(ridge=0.01).T)
    hook.remove()


def _spread(step: UnrolledStep) -> Tensor:
    """[B, R, H] of the rows that count, zeros elsewhere."""
    spread_BRH = step.hidden_NH.new_zeros(*step.mask_BR.shape, step.hidden_NH.shape[1])
    spread_BRH[step.mask_BR] = step.hidden_NH
    return spread_BRH


def known_before(drafter: Drafter) -> set[int]:
    """Ids of the parameters that a drafter had before it was parallel: what true rows say is to stay while masks learn to read
    it, so these are trained at the fusion's rate."""
    own = [drafter.layers[0], drafter.norm, drafter.lm_head]
    return {id(parameter) for module in own for parameter in module.parameters()}


@torch.no_grad()
def read_scaled(drafter: Drafter, scale_F: Tensor) -> None:
    """From now on `drafter` is given features divided by `scale_F` [F], and computes what it did; in place."""
    weight_of(drafter.fusion.fc).mul_(scale_F)
    if drafter.mask_hidden is not None:
        drafter.mask_hidden.div_(scale_F)
