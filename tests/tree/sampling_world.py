"""A toy world whose joint law of three tokens is known exactly, and speculative decoding in it.

Shape letters: B requests, V target vocabulary, D draft vocabulary, R rows, F rows drafted from at one depth, C children
of each.
"""

import itertools
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from benchmarks.gpu.statistics import chi_square
from eagle3_serving.tree import PADDING, tree_layout, with_root
from eagle3_serving.tree.layout import TreeLayout
from eagle3_serving.tree.noise import Noise
from eagle3_serving.tree.sampling import (
    Proposals,
    SamplingParams,
    accept_sampled,
    coupled_children,
    draw_children,
    sample,
)

VOCAB = 5
TOKENS = 3
DRAFT_TEMPERATURE = 0.9  # not the target's: the law must hold for any draft law
PRUNED_BELOW = 0.2
START = (2, 4)


class World(NamedTuple):
    """Logits of the next token given the last two; draft id d is target id `ids_D[d]`."""

    target_VVV: Tensor
    draft_VVD: Tensor
    ids_D: Tensor


class Shape(NamedTuple):
    """Every node at depth d - 1 drafts `widths[d - 1]` children, drawn or the drafter's best.

    `coupled`: by the noise of the draw itself. `stairs`: the child of rank r keeps r children less (PADDING in their place).
    The others are faults that break the law: `prune` drops drawn children that were unlikely, `resort` puts siblings in order of probability, `pretend`
    passes off the drafter's best as drawn, `redraw` draws anew, by other noise, where no coupled child was the draw.
    """

    widths: tuple[int, ...]
    drawn: bool
    stairs: bool = False
    prune: bool = False
    resort: bool = False
    pretend: bool = False
    coupled: bool = False
    redraw: bool = False


def make_world(seed: int = 0) -> World:
    """The drafter has seen the target's law, through noise; one of the target's tokens it does not know."""
    generator = torch.Generator().manual_seed(seed)
    target_VVV = torch.randn(VOCAB, VOCAB, VOCAB, generator=generator)
    ids_D = torch.tensor([3, 0, 4, 1])
    noise_VVD = torch.randn(VOCAB, VOCAB, len(ids_D), generator=generator)
    return World(target_VVV, 0.5 * target_VVV[..., ids_D] + noise_VVD, ids_D)


def reference_law(
    logits: np.ndarray, temperature: float, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0
) -> np.ndarray:
    """One row in fp64, the slow and plain way: temperature, min-p, top-k, top-p."""
    logits = logits.astype(np.float64)
    if temperature == 0:
        return np.eye(len(logits))[int(np.argmax(logits))]
    law = np.exp((logits - logits.max()) / temperature)
    law /= law.sum()
    law = np.where(law < min_p * law.max(), 0.0, law)
    order = sorted(range(len(law)), key=lambda token: (-law[token], token))
    if top_k > 0:
        law[order[top_k:]] = 0.0
    law /= law.sum()
    if top_p < 1:
        kept, mass = [], 0.0
        for token in order:
            if kept and mass >= top_p:
                break
            kept.append(token)
            mass += law[token]
        law = np.where(np.isin(np.arange(len(law)), kept), law, 0.0)
    return law / law.sum()


def exact_joint(world: World, temperature: float = 1.0, **filters: float) -> Tensor:
    """The law [V ** 3] fp64 of the three tokens after START."""
    table = np.zeros((VOCAB,) * 3)
    for last in itertools.product(range(VOCAB), repeat=2):
        table[last] = reference_law(world.target_VVV[last].numpy(), temperature, **filters)  # type: ignore[arg-type]
    a, b, c = np.ogrid[:VOCAB, :VOCAB, :VOCAB]
    return torch.from_numpy(table[START][a] * table[START[1], a, b] * table[a, b, c]).flatten()


class Tree(NamedTuple):
    tokens_BR: Tensor
    before_BR: Tensor  # the token before each row's own
    layout: TreeLayout
    proposals: Proposals | None


def draft(
    world: World, context_B2: Tensor, shape: Shape, generator: torch.Generator, noise: Noise | None = None
) -> Tree:
    """A tree for each request, breadth first, siblings in the order drawn."""
    batch = len(context_B2)
    tokens, before, kept = [context_B2[:, 1:]], [context_B2[:, :1]], [torch.ones(1, 1, dtype=torch.bool)]
    laws: list[Tensor] = []
    parents: list[Tensor] = []
    first, rows = 0, 1
    for depth, width in enumerate(shape.widths):
        logits_BFD = world.draft_VVD[before[-1], tokens[-1]]
        ids_BFC = logits_BFD.topk(width).indices
        if noise is not None:
            temperature_B = torch.full((batch,), DRAFT_TEMPERATURE)
            ids_BFC = coupled_children(logits_BFD, width, temperature_B, noise.gumbel(depth, world.ids_D)).tokens_BKC
        if shape.drawn:
            draw = draw_children(logits_BFD, width, torch.full((batch,), DRAFT_TEMPERATURE), generator)
            laws.append(draw.probs_BKV)
            ids_BFC = ids_BFC if shape.pretend else draw.tokens_BKC
        if shape.resort:
            ids_BFC = ids_BFC.gather(2, laws[-1].gather(2, ids_BFC).argsort(-1, descending=True))
        keep_BFC = kept[-1][..., None].expand(-1, -1, width)
        if shape.stairs and first > 0:
            rank_F = torch.arange(rows - first) % shape.widths[0]
            keep_BFC = keep_BFC & (torch.arange(width) < width - rank_F[:, None])
        if shape.prune:
            keep_BFC = keep_BFC & (laws[-1].gather(2, ids_BFC) > PRUNED_BELOW)
        kept.append(keep_BFC.flatten(1))
        before.append(tokens[-1][..., None].expand_as(ids_BFC).flatten(1))
        parents.append(torch.arange(first, rows).repeat_interleave(width) - 1)
        tokens.append(world.ids_D[ids_BFC].flatten(1))
        first, rows = rows, rows + tokens[-1].shape[1]
    # an unpruned tree has one layout for the whole batch
    kept_BN = torch.cat([mask.expand(len(kept[-1]), -1) for mask in kept[1:]], 1)
    one = tree_layout(with_root(torch.where(kept_BN, torch.cat(parents), PADDING)), len(shape.widths))
    layout = TreeLayout(*(part.expand(batch, *part.shape[1:]) for part in one))
    proposals = None
    if shape.drawn:
        laws_BQD, row_R = torch.cat(laws, 1), torch.arange(rows)
        row_R = torch.where(row_R < laws_BQD.shape[1], row_R, -1)
        proposals = Proposals(laws_BQD, row_R.expand(batch, rows), world.ids_D)
    return Tree(torch.cat(tokens, 1), torch.cat(before, 1), layout, proposals)


def step(
    world: World,
    context_B2: Tensor,
    params: SamplingParams,
    shape: Shape,
    generator: torch.Generator,
    noise: Noise | None = None,
) -> Tensor:
    """One speculative step: the tokens it emits, [B, depth + 1], -1 past the bonus."""
    tree = draft(world, context_B2, shape, generator, noise)
    logits_BRV = world.target_VVV[tree.before_BR, tree.tokens_BR]
    depth = len(shape.widths)
    widest = max(shape.widths)
    done = accept_sampled(
        tree.tokens_BR, tree.layout, logits_BRV, params, depth, generator, tree.proposals, widest, noise
    )
    if shape.redraw and noise is not None:
        at_B = torch.where(done.count_B > 0, done.rows_BD.gather(1, (done.count_B - 1).clamp(min=0)[:, None])[:, 0], 0)
        anew_B = sample(logits_BRV[torch.arange(len(at_B)), at_B], params, Noise(noise.seed_B + 1, noise.position_B))
        done = done._replace(bonus_B=torch.where(done.count_B < depth, anew_B, done.bonus_B))
    path_BD = tree.tokens_BR.gather(1, done.rows_BD.clamp(min=0))
    emitted_BT = torch.where(done.rows_BD < 0, -1, path_BD)
    emitted_BT = torch.cat([emitted_BT, torch.full_like(emitted_BT[:, :1], -1)], 1)
    return emitted_BT.scatter(1, done.count_B[:, None], done.bonus_B[:, None])


def joint_counts(world: World, params: SamplingParams, shape: Shape, generator: torch.Generator) -> Tensor:
    """Every request decodes three tokens in as many steps as it takes: how often each triple came, [V ** 3]."""
    batch, ahead = len(params.temperature_B), len(shape.widths) + 1
    text = torch.tensor(START).repeat(batch, 1)
    text = torch.cat([text, torch.zeros(batch, TOKENS + ahead, dtype=torch.long)], 1)
    length = torch.full((batch,), len(START))
    seed_B = torch.randint(-(2**62), 2**62, (batch,), generator=generator)
    while len(left := (length < len(START) + TOKENS).nonzero()[:, 0]):
        context_B2 = torch.stack([text[left, length[left] - 2], text[left, length[left] - 1]], 1)
        some = SamplingParams(*(None if part is None else part[left] for part in params))  # type: ignore[arg-type]
        noise = Noise(seed_B[left], length[left] - 1) if shape.coupled else None
        emitted_BT = step(world, context_B2, some, shape, generator, noise)
        for place in range(ahead):
            text[left, length[left] + place] = emitted_BT[:, place]
        length[left] += (emitted_BT >= 0).sum(1)
    a, b, c = text[:, 2], text[:, 3], text[:, 4]
    return torch.bincount((a * VOCAB + b) * VOCAB + c, minlength=VOCAB**TOKENS)


class Verdict(NamedTuple):
    """`p_value` of Pearson's chi-square, `distance` in total variation and the bound that one honest run in a thousand
    exceeds.
    """

    p_value: float
    distance: float
    bound: float

    @property
    def lawful(self) -> bool:
        return self.p_value > 1e-3 and self.distance < self.bound


def judge(counts: Tensor, exact: Tensor) -> Verdict:
    """Counts against the exact law; a cell of probability 0 that was seen at all is p = 0.

    The total variation's mean is at most half the sum of the cells'
    standard deviations, and one draw moves it by at most 1 / n (McDiarmid: exp(-2 n t^2)).
    """
    total = float(counts.sum())
    distance = 0.5 * float((counts / total - exact).abs().sum())
    bound = 0.5 * float((exact * (1 - exact) / total).sqrt().sum()) + (np.log(1e3) / (2 * total)) ** 0.5
    return Verdict(chi_square(counts, exact), distance, bound)
