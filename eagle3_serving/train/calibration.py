"""Fit a calibration: what a drafter's confidence is worth, measured on answers that it was not trained on.

Shape letters: B answers, R response rows, N rows that count, C children, V vocabulary, X measurements, L lookup tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from tqdm import tqdm

from eagle3_serving.drafter import Drafter
from eagle3_serving.drafter.layers import weight_of
from eagle3_serving.engine.target import Target
from eagle3_serving.train.data import Answer, make_batches
from eagle3_serving.train.features import Extract, extract_features
from eagle3_serving.train.ttt import unroll
from eagle3_serving.tree import prompt_lookup, top_children
from eagle3_serving.tree.calibrate import Calibration, fit, logit

DEPTHS, RANKS = 8, 10
MAX_NGRAM, LOOKUP_TOKENS = 3, 8
_TOKENS_PER_BATCH = 2048


@dataclass(frozen=True)
class Fitted:
    """`before` and `after`: mean log-loss in nats of the draft's own probability, and of the calibrated chance."""

    calibration: Calibration
    before: float
    after: float


@torch.inference_mode()
def measure(
    drafter: Drafter, target: Target, answers: Sequence[Answer], progress: bool = True, extract: Extract | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """log p, depth, rank and accepted (0 or 1) of every child of every node that a tree would draft from.

    A node is there where the answer's own tokens down to it were among the drafter's children at every depth; a child
    is accepted where it is the target's argmax. `extract`: where features come from, a pass of the target unless told.
    """
    extract = extract or partial(extract_features, target)
    head_VH = weight_of(target.model.lm_head)
    found: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    batches = make_batches(answers, _TOKENS_PER_BATCH, seed=0)
    for group in tqdm(batches, desc="measuring acceptance", unit="batch", disable=not progress):
        batch = extract(group)
        taught_BR = batch.taught_BR
        wanted_BR = torch.zeros_like(batch.next_BR)
        wanted_BR[taught_BR] = (batch.final_BRH[taught_BR].to(head_VH.dtype) @ head_VH.T).argmax(-1)
        reached_BR = torch.ones_like(taught_BR)
        for step, (hidden_NH, mask_BR) in enumerate(unroll(drafter, batch, taught_BR, DEPTHS)):
            children = top_children(drafter.logits(hidden_NH)[None], RANKS)
            tokens_NC = drafter.vocabulary.to_target(children.tokens_BKC[0])
            here_N = reached_BR[mask_BR]
            accepted_NC = tokens_NC == wanted_BR[mask_BR][:, None]
            log_p_NC = children.log_chance_BKC[0]
            rank_NC = torch.arange(log_p_NC.shape[1], device=log_p_NC.device).expand_as(log_p_NC)
            depth_NC = torch.full_like(rank_NC, step + 1)
            found.append(tuple(x[here_N].flatten().cpu() for x in (log_p_NC, depth_NC, rank_NC, accepted_NC)))  # type: ignore[arg-type]
            hit_BR = torch.zeros_like(reached_BR)
            hit_BR[mask_BR] = (tokens_NC == batch.next_BR[mask_BR][:, None]).any(-1)
            # the chain that is at row r next step was at row r - 1 in this one
            reached_BR = torch.nn.functional.pad(reached_BR & hit_BR, (1, 0))[:, :-1]
    log_p_X, depth_X, rank_X, accepted_X = (torch.cat(parts) for parts in zip(*found, strict=True))
    return log_p_X, depth_X, rank_X, accepted_X.float()


def lookup_chances(answers: Sequence[Answer]) -> tuple[tuple[float, ...], ...]:
    """[n - 1][d - 1]: how often the d-th token of a continuation found by n matching tokens was the answer's own, given
    that those before it were. Seen seldom, it is drawn towards one half."""
    right = torch.ones(MAX_NGRAM, LOOKUP_TOKENS, dtype=torch.double)
    tried = torch.full_like(right, 2.0)
    for answer in answers:
        text_S = torch.tensor(answer.prompt_ids + answer.response_ids)
        # at least one token of the answer is known, and at least one is still to come
        length_B = torch.arange(len(answer.prompt_ids) + 1, len(text_S))
        found = prompt_lookup(text_S.expand(len(length_B), -1), length_B, MAX_NGRAM, LOOKUP_TOKENS)
        place_BL = length_B[:, None] + torch.arange(LOOKUP_TOKENS)
        known_BL = (place_BL < len(text_S)) & (torch.arange(LOOKUP_TOKENS) < found.length_B[:, None])
        same_BL = known_BL & (text_S[place_BL.clamp(max=len(text_S) - 1)] == found.tokens_BL)
        so_far_BL = same_BL.long().cumprod(1).bool()
        tried_BL = known_BL & torch.nn.functional.pad(so_far_BL, (1, 0), value=True)[:, :-1]
        for n in range(1, MAX_NGRAM + 1):
            of_n_B = found.match_B == n
            right[n - 1] += so_far_BL[of_n_B].sum(0)
            tried[n - 1] += tried_BL[of_n_B].sum(0)
    return tuple(tuple(row) for row in (right / tried).tolist())


def calibrate(
    drafter: Drafter, target: Target, answers: Sequence[Answer], progress: bool = True, extract: Extract | None = None
) -> Fitted:
    """Measure and fit. `answers` are greedy ones, to prompts that the drafter was not trained on."""
    if extract is None:
        target.watch(drafter.config.aux_layers)
    log_p_X, depth_X, rank_X, accepted_X = measure(drafter, target, answers, progress, extract)
    bias, slope, rank = fit(log_p_X, depth_X, rank_X, accepted_X, DEPTHS, RANKS)
    made = Calibration(bias, slope, rank, lookup_chances(answers), rows=len(accepted_X))
    depth_X, rank_X = depth_X - 1, rank_X
    score_X = torch.tensor(bias)[depth_X] + torch.tensor(slope)[depth_X] * logit(log_p_X) + torch.tensor(rank)[rank_X]
    loss = torch.nn.functional.binary_cross_entropy_with_logits
    return Fitted(made, float(loss(logit(log_p_X), accepted_X)), float(loss(score_X, accepted_X)))
