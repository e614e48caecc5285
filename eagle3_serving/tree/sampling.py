"""Lossless sampling from a verified tree: what is emitted follows the target's law, whatever the drafter proposed.

Shape letters: B requests, R rows of the verify pass (row 0 is the root), V vocabulary (of the draft for draft laws),
K nodes drafted from at one depth, C children of a node, Q rows drafted from in the whole tree, D depths, S siblings.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from eagle3_serving.tree.accept import Acceptance
from eagle3_serving.tree.expand import Children, top_children
from eagle3_serving.tree.layout import TreeLayout, paths_of
from eagle3_serving.tree.noise import Noise

GREEDY_BELOW = 1e-5  # vLLM's bound: a lower temperature is the argmax
# of the noise that a draft goes by: less than all of it, for a drafter's law is flatter than the target's, being a mean over
# what the target may think (`benchmarks.drawn_answers --share`)
COUPLING = 0.8
_LIMITS = torch.finfo(torch.float32)


class SamplingParams(NamedTuple):
    """One value a request: `temperature_B` fp32 (0 = argmax), `top_k_B` int64 (0 = off), `top_p_B` fp32 (1 = off),
    `min_p_B` fp32 (0 = off). None turns a filter off for the whole batch; without top-k and top-p nothing is sorted.
    """

    temperature_B: Tensor
    top_k_B: Tensor | None = None
    top_p_B: Tensor | None = None
    min_p_B: Tensor | None = None

    @classmethod
    def uniform(
        cls,
        batch: int,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        device: torch.device | str = "cpu",
    ) -> "SamplingParams":
        """The same values for every request; a filter that is off is None."""
        return cls(
            torch.full((batch,), temperature, dtype=torch.float32, device=device),
            torch.full((batch,), top_k, dtype=torch.long, device=device) if top_k > 0 else None,
            torch.full((batch,), top_p, dtype=torch.float32, device=device) if top_p < 1 else None,
            torch.full((batch,), min_p, dtype=torch.float32, device=device) if min_p > 0 else None,
        )


class Draw(NamedTuple):
    """`tokens_BKC` int64 draft ids in the order drawn, `probs_BKV` fp32 the law they were drawn from."""

    tokens_BKC: Tensor
    probs_BKV: Tensor


class Proposals(NamedTuple):
    """What acceptance must know of drawn proposals.

    `probs_BQV` fp32 draft laws over the draft vocabulary, `row_BR` int64 the law Q that a verify row's children were
    drawn from (-1: none), `target_ids_V` int64 draft id -> target id, all different.
    """

    probs_BQV: Tensor
    row_BR: Tensor
    target_ids_V: Tensor


def _scaled(logits_XV: Tensor, temperature_X1: Tensor) -> Tensor:
    """Logits over temperature, shifted so that the best is exactly 0; at temperature 0 all others are -inf.

    NaN counts as -inf. A row without any number keeps token 0.
    """
    finite_XV = logits_XV.float().nan_to_num(nan=-torch.inf, posinf=_LIMITS.max, neginf=-torch.inf)
    best_X1 = finite_XV.argmax(-1, keepdim=True)
    shifted_XV = finite_XV - finite_XV.gather(-1, best_X1).clamp(min=_LIMITS.min)
    greedy_X1 = temperature_X1 < GREEDY_BELOW
    scaled_XV = shifted_XV / torch.where(greedy_X1, 1.0, temperature_X1)
    return scaled_XV.masked_fill(greedy_X1, -torch.inf).scatter(-1, best_X1, 0.0)


def target_law(logits_BV: Tensor, params: SamplingParams) -> Tensor:
    """The law [B, V] fp32 that a request samples from: temperature, then min-p, top-k, top-p, as vLLM orders them.

    Top-p is measured on what top-k left. Of equal logits the lower id ranks first, so top-k keeps exactly k. The best
    token is never removed.
    """
    scaled_BV = _scaled(logits_BV, params.temperature_B[:, None])
    if params.min_p_B is not None:
        # the best token's weight is 1, so its share of the best's probability is a token's weight itself
        scaled_BV = scaled_BV.masked_fill(scaled_BV < params.min_p_B.clamp(max=1).log()[:, None], -torch.inf)
    weights_BV = scaled_BV.exp()
    if params.top_k_B is not None or params.top_p_B is not None:
        ranked = scaled_BV.sort(dim=-1, descending=True, stable=True)
        ranked_BV = ranked.values.exp()
        rank_V = torch.arange(ranked_BV.shape[-1], device=ranked_BV.device)
        if params.top_k_B is not None:
            off_B1 = params.top_k_B[:, None] <= 0
            ranked_BV = ranked_BV * (off_B1 | (rank_V < params.top_k_B[:, None]))
        if params.top_p_B is not None:
            top_p_B1 = params.top_p_B[:, None]
            sum_BV = ranked_BV.cumsum(-1)
            inside_BV = sum_BV - ranked_BV < top_p_B1 * sum_BV[:, -1:]
            ranked_BV = ranked_BV * (inside_BV | (top_p_B1 >= 1) | (rank_V == 0))
        weights_BV = torch.zeros_like(weights_BV).scatter(-1, ranked.indices, ranked_BV)
    return weights_BV / weights_BV.sum(-1, keepdim=True)


def sample(logits_BV: Tensor, params: SamplingParams, noise: Noise) -> Tensor:
    """One token [B] int64 a request, drawn from `target_law`: plain decoding's step."""
    return _likeliest(target_law(logits_BV, params), noise, 0)


def coupled_children(logits_BKV: Tensor, top_k: int, temperature_B: Tensor, gumbel_BV: Tensor) -> Children:
    """The `top_k` tokens of the drafter that are likeliest to be the next draw, which is known up to the target's law.

    `gumbel_BV`: the noise g of that draw for the drafter's tokens, finite. Drawn is argmax log p + T g, with p the law at
    temperature 1; the drafter ranks by log q + `COUPLING` T g. Its softmax is the chance, as far as the ranking goes, and
    that of `top_children` where T is 0.
    """
    weight_B = torch.where(temperature_B < GREEDY_BELOW, 0.0, COUPLING * temperature_B)
    return top_children(logits_BKV.float() + (weight_B[:, None] * gumbel_BV.float())[:, None], top_k)


def draw_children(
    logits_BKV: Tensor, count: int, temperature_B: Tensor, generator: torch.Generator | None = None
) -> Draw:
    """`count` different children a node (at most V), drawn one after the other without replacement.

    The largest of q / Exp(1): the Gumbel top-k trick (Kool et al. 2019, arXiv 1903.06059) with both sides
    exponentiated. A request of temperature 0 gets its top-k in order and a one-hot law: its first child is then what
    the law draws, the others are deterministic proposals, and `accept_sampled` treats them so.
    """
    temperature_B11 = temperature_B[:, None, None]
    weights_BKV = _scaled(logits_BKV, temperature_B11).exp()
    probs_BKV = weights_BKV / weights_BKV.sum(-1, keepdim=True)
    # fp64: an fp32 uniform has steps of 6e-8, which the rare tokens of a large vocabulary would feel
    noise_BKV = torch.rand(probs_BKV.shape, dtype=torch.float64, device=probs_BKV.device, generator=generator)
    drawn_BKV = probs_BKV / -noise_BKV.log()
    plain_BKV = logits_BKV.float().nan_to_num(nan=-torch.inf, neginf=-torch.inf)
    order_BKV = torch.where(temperature_B11 < GREEDY_BELOW, plain_BKV, drawn_BKV)
    return Draw(order_BKV.topk(min(count, logits_BKV.shape[-1])).indices, probs_BKV)


def accept_sampled(
    tokens_BR: Tensor,
    layout: TreeLayout,
    logits_BRV: Tensor,
    params: SamplingParams,
    max_depth: int,
    generator: torch.Generator | None = None,
    proposals: Proposals | None = None,
    max_children: int | None = None,
    noise: Noise | None = None,
) -> Acceptance:
    """A walk from the root that emits tokens exactly by `target_law`, one law of one row for each request and depth.

    Without `proposals` the tree may be any function of the context (a drafter's top-k, a lookup). A token y is drawn
    from the law p of the current row: a child y is entered, else y is the bonus. This is multi-round rejection with
    one-hot q: sibling x is accepted with min(1, p(x) / 1) = p(x), else p loses x and is renormalised, so each child is
    entered with its p(x) and the bonus is p given that no child came: the two outcomes of one draw y. Siblings of one
    token are walked together, and of the longest paths the first row's wins. With `noise`, of the draws after the roots,
    y is what plain decoding with this noise draws, and the tree may be a function of the noise too (`coupled_children`):
    y is one of p and the noise alone.

    With `proposals`, siblings in row order are the draws in their order. Sibling x is accepted with min(1, p(x)/q(x)),
    else p becomes norm((p - q)+) and q loses x; when no sibling is left the bonus is drawn from what p has become.
    Each round leaves the emitted token's law at p (Leviathan et al. 2023, arXiv 2211.17192, appendix A.1: accepted
    min(p, q) plus rejected (p - q)+), so by induction all rounds do: SpecInfer (arXiv 2305.09781, theorem 4.2) for
    several proposals, recursive rejection sampling (RSD, arXiv 2402.14160) for draws without replacement.
    The condition: whether a child is in the tree must not depend on its own drawn token, its later siblings' or any
    below it (keep a prefix of the draws by rank; never select by a drawn token's probability), or the law is lost.
    A child that its law cannot draw (no law, or earlier siblings used up its mass) is a deterministic proposal, q
    one-hot. A residual that rounding leaves empty keeps the p before it, whose support is the target's.

    `tokens_BR` int64 target ids of the rows (the root's own is not looked at), `layout` in row space, `logits_BRV` the
    target's after each row, `max_depth` the deepest node's depth. `max_children` (R - 1 unless told) only saves
    rounds: siblings past it are not tried. Requests of temperature 0 get `accept_greedy`'s answer.
    """
    batch, rows = tokens_BR.shape
    siblings = 0 if proposals is None else min(rows - 1, rows if max_children is None else max_children)
    shape_BDS = (batch, max_depth + 1, siblings + 1)
    uniform_BDS = torch.rand(shape_BDS, dtype=torch.float64, device=logits_BRV.device, generator=generator)
    index_B = torch.arange(batch, device=tokens_BR.device)
    # the rows that stand for the path so far: several where siblings hold the same token
    here_BR = (torch.arange(rows, device=tokens_BR.device) == 0).expand(batch, rows)
    open_B = torch.ones_like(index_B, dtype=torch.bool)
    count_B, bonus_B = torch.zeros_like(index_B), torch.zeros_like(index_B)
    for depth in range(max_depth + 1):
        row_B = _first(here_BR)
        law_BV = target_law(logits_BRV[index_B, row_B], params)
        # PADDING and the root have no parent that could be here
        children_BR = here_BR.gather(1, layout.parents_BN.clamp(min=0)) & (layout.parents_BN >= 0)
        # the deepest node has no children to reject
        if proposals is None or depth == max_depth:
            token_B = _draw(law_BV, uniform_BDS[:, depth, -1]) if noise is None else _likeliest(law_BV, noise, depth)
            entered_BR = children_BR & (tokens_BR == token_B[:, None])
        else:
            draft_BV = _draft_law(proposals, row_B, law_BV)
            entered_BR, law_BV = _reject(law_BV, draft_BV, children_BR, tokens_BR, uniform_BDS[:, depth, :-1])
            token_B = _draw(law_BV, uniform_BDS[:, depth, -1])
        bonus_B = torch.where(open_B, token_B, bonus_B)
        open_B = open_B & entered_BR.any(1)
        here_BR = torch.where(open_B[:, None], entered_BR, here_BR)
        count_B = count_B + open_B
    return Acceptance(paths_of(layout, _first(here_BR)[:, None], max_depth)[:, 0, 1:], count_B, bonus_B)


def _reject(
    law_BV: Tensor, draft_BV: Tensor, children_BR: Tensor, tokens_BR: Tensor, uniform_BS: Tensor
) -> tuple[Tensor, Tensor]:
    """The accepted child as a mask [B, R] (all false: none), and the law that a bonus is then drawn from."""
    index_R = torch.arange(children_BR.shape[1], device=children_BR.device)
    accepted_BR = torch.zeros_like(children_BR)
    for uniform_B in uniform_BS.unbind(1):
        child_B1 = _first(children_BR)[:, None]
        turn_B1 = children_BR.any(1, keepdim=True)
        # without a child the row is the root, whose token may be anything
        token_B1 = torch.where(turn_B1, tokens_BR.gather(1, child_B1), 0)
        drawn_B1 = draft_BV.gather(1, token_B1) > 0
        draft_BV = torch.where(drawn_B1, draft_BV, torch.zeros_like(draft_BV).scatter(1, token_B1, 1.0))
        # strict and multiplied out: p = 0 is never accepted, p >= q always is
        agreed_B1 = law_BV.gather(1, token_B1) > uniform_B[:, None] * draft_BV.gather(1, token_B1)
        accepted_B1 = turn_B1 & agreed_B1
        law_BV = torch.where(turn_B1 & ~accepted_B1, _residual(law_BV, draft_BV), law_BV)
        draft_BV = _without(draft_BV, token_B1)
        is_child_BR = index_R == child_B1
        accepted_BR = accepted_BR | (accepted_B1 & is_child_BR)
        children_BR = children_BR & ~is_child_BR & ~accepted_B1
    return accepted_BR, law_BV


def _residual(law_BV: Tensor, draft_BV: Tensor) -> Tensor:
    """What is left of p after a rejection: norm((p - q)+), or p where rounding leaves nothing."""
    rest_BV = (law_BV - draft_BV).clamp(min=0)
    mass_B1 = rest_BV.sum(-1, keepdim=True)
    return torch.where(mass_B1 > 0, rest_BV / mass_B1, law_BV)


def _without(draft_BV: Tensor, token_B1: Tensor) -> Tensor:
    """The law of the next draw: q without the token just drawn, all zeros once nothing is left."""
    rest_BV = draft_BV.scatter(1, token_B1, 0.0)
    # the sum itself: 1 - q(x) would cancel where q(x) is near 1
    return rest_BV / rest_BV.sum(-1, keepdim=True).clamp(min=_LIMITS.tiny)


def _draft_law(proposals: Proposals, row_B: Tensor, law_BV: Tensor) -> Tensor:
    """The law over the target's vocabulary that the row's children were drawn from; all zeros where there is none."""
    drafted_B1 = proposals.row_BR.gather(1, row_B[:, None])
    index_B = torch.arange(row_B.shape[0], device=row_B.device)
    probs_BV = proposals.probs_BQV[index_B, drafted_B1[:, 0].clamp(min=0)].masked_fill(drafted_B1 < 0, 0.0)
    return torch.zeros_like(law_BV).index_copy(1, proposals.target_ids_V, probs_BV)


def _draw(law_BV: Tensor, uniform_B: Tensor) -> Tensor:
    """One token a request by the inverse of the summed law, in fp64; never one of probability 0."""
    sum_BV = law_BV.cumsum(-1, dtype=torch.float64)
    token_B1 = torch.searchsorted(sum_BV, uniform_B[:, None] * sum_BV[:, -1:], right=True)
    token_B1 = token_B1.clamp(max=law_BV.shape[-1] - 1)
    # a parallel sum may step by a rounding where the law has none
    possible_B1 = law_BV.gather(1, token_B1) > 0
    return torch.where(possible_B1, token_B1, law_BV.argmax(-1, keepdim=True))[:, 0]


def _likeliest(law_BV: Tensor, noise: Noise, ahead: int) -> Tensor:
    """One token a request by the Gumbel-max trick, in fp64; never one of probability 0."""
    ids_V = torch.arange(law_BV.shape[-1], device=law_BV.device)
    return (law_BV.double().log() + noise.gumbel(ahead, ids_V)).argmax(-1)


def _first(mask_BR: Tensor) -> Tensor:
    """The first true row of each request, 0 where there is none."""
    return mask_BR.int().argmax(1)
