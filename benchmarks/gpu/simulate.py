"""Simulated acceptance: whether a draft token is accepted is drawn at a stated rate, everything else is real.

Random weights agree with nothing, so a drafter's confidence is drawn too. At every drafted node the best child's chance
is p = u ** ((1 - a) / a), u uniform: its mean is the stated rate a, and it is spread as confidences are, many near 1. Of
what is left, siblings hold the share m, halving from rank to rank, none above the best. The target is then taken to say
child i with exactly its chance: a perfectly calibrated drafter. Trees are ranked by these chances with the real code, so a
tree finds more than a chain, as in life.

The target's and the drafter's passes, their logits and top-k, the tree's arithmetic, the walk and the moves are all done.

Shape letters: B requests, R rows (root first), N nodes, K frontier nodes, C children.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.graphs import GraphedDraft
from eagle3_serving.drafter import Drafter
from eagle3_serving.engine import DecodeOptions, Step
from eagle3_serving.engine.batch import Batch
from eagle3_serving.engine.draft import TreeShape
from eagle3_serving.engine.policy import Experience
from eagle3_serving.engine.speculate import Speculator
from eagle3_serving.tree import (
    PADDING,
    Children,
    Draft,
    DraftTree,
    Grow,
    accept_greedy,
    expand,
    pool,
    root_frontier,
    select,
    top_children,
    tree_layout,
    with_root,
)
from eagle3_serving.tree.budget import CostModel


@dataclass(frozen=True)
class AcceptanceLaw:
    """`rate` a: the mean chance of a node's best child; `siblings` m: the share of the rest that the others hold."""

    rate: float
    siblings: float

    def log_chances(self, batch: int, nodes: int, children: int, device: torch.device) -> Tensor:
        """[B, K, C] fp32, descending."""
        best_BK1 = torch.rand(batch, nodes, 1, device=device).clamp(min=1e-6) ** ((1 - self.rate) / self.rate)
        share_C = self.siblings * 0.5 ** torch.arange(1, children, device=device)
        others_BKC = torch.minimum((1 - best_BK1) * share_C, best_BK1)
        # a chance of 0 is none: the log stays finite
        return torch.cat([best_BK1, others_BKC], dim=-1).clamp(min=1e-9).log()

    def choices(self, tree: DraftTree, free_ids: tuple[int, int]) -> Tensor:
        """What the target is taken to say after every row [B, R]: a child's token with its chance, else one of the ids
        between `free_ids`, which are never drafted."""
        parents_BR = with_root(tree.parents_BN)
        tokens_BR = torch.cat([torch.zeros_like(tree.tokens_BN[:, :1]), tree.tokens_BN], dim=1)
        score_BR = torch.cat([torch.zeros_like(tree.scores_BN[:, :1]), tree.scores_BN], dim=1)
        above_BR = parents_BR.clamp(min=0)
        live_BR = parents_BR >= 0
        chance_BR = (score_BR - score_BR.gather(1, above_BR)).exp().nan_to_num(0.0) * live_BR
        siblings_BRR = (parents_BR[:, :, None] == parents_BR[:, None]) & live_BR[:, None]
        earlier_BR = (siblings_BRR.tril(-1) * chance_BR[:, None]).sum(-1)
        batch, rows = parents_BR.shape
        drawn_BR = torch.rand(batch, rows, device=parents_BR.device).gather(1, above_BR)
        said_BR = live_BR & (drawn_BR >= earlier_BR) & (drawn_BR < earlier_BR + chance_BR)
        free_BR = torch.randint(*free_ids, (batch, rows + 1), device=parents_BR.device)
        # what is not said lands in one slot past the end
        return free_BR.scatter(1, torch.where(said_BR, above_BR, rows), tokens_BR)[:, :rows]


@dataclass
class Record:
    """Sums over the steps timed."""

    steps: int = 0
    tokens: int = 0
    nodes: int = 0
    draft_s: float = 0.0
    verify_s: float = 0.0


class Recording:
    """A policy that notes what came of each step."""

    def __init__(self, policy: Any) -> None:
        self.policy, self.record = policy, Record()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.policy, name)

    def observe(self, absorbed: int, draft_s: float, verify_s: float, tree: DraftTree, steps: list[Step]) -> None:
        self.record.draft_s += draft_s
        self.record.verify_s += verify_s
        self.policy.observe(absorbed, draft_s, verify_s, tree, steps)


class SimulatedSpeculator(Speculator):
    """A speculator whose confidence and acceptance follow `law`; its drafts are graphs where the shape is fixed."""

    def __init__(
        self,
        drafter: Drafter,
        batch: Batch,
        options: DecodeOptions,
        law: AcceptanceLaw,
        costs: CostModel | None = None,
        experience: Experience | None = None,
        graphs: bool = True,
    ) -> None:
        super().__init__(drafter, batch, options, None, costs, experience)
        self.law = law
        capacity = batch.capacity + options.shape.rows + 1
        self.draft = GraphedDraft(drafter, batch.slots, capacity, graphs, fixed=options.mode != "auto")
        self.policy: Any = Recording(self.policy)

    def grow(self) -> Grow:
        return self._grow

    def _grow(self, logits_BKV: Tensor, depth: int) -> Children:
        tokens_BKC = top_children(logits_BKV, self.options.shape.top_k).tokens_BKC
        batch, nodes, children = tokens_BKC.shape
        return Children(tokens_BKC, self.law.log_chances(batch, nodes, children, tokens_BKC.device))

    def choices(self, argmax_BR: Tensor, tree: DraftTree) -> Tensor:
        free = (self.draft.drafter.config.draft_vocab_size, self.batch.target.vocab_size)
        return self.law.choices(tree, free)

    def verify(self, draft: Draft, tree: DraftTree, counts: list[int]) -> list[Step]:
        """All requests at the width of the widest, rounded up to one that has a graph: shapes are what graphs want."""
        if self.options.mode == "auto":
            width = next((w for w in WIDTHS if w >= max(counts)), max(counts))
            missing = width - 1 - tree.parents_BN.shape[1]
            fill = {"tokens_BN": 0, "parents_BN": PADDING, "scores_BN": -torch.inf, "pool_BN": 0}
            tree = DraftTree(
                *(
                    torch.nn.functional.pad(part, (0, missing), value=fill[name])
                    for name, part in tree._asdict().items()
                )
            )
            counts = [width] * len(counts)
        return super().verify(draft, tree, counts)


WIDTHS = (2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)  # rows of a request that auto's passes are rounded up to
SHAPES = {"chain-3": TreeShape.chain(3), "tree-16": TreeShape(16, 5, 4), "tree-60": TreeShape(60, 8, 10)}


def expected_lengths(law: AcceptanceLaw) -> dict[str, float]:
    """Accepted lengths that the law gives each of `SHAPES`."""
    return {name: expected_length(law, shape) for name, shape in SHAPES.items()}


@cache
def expected_length(law: AcceptanceLaw, shape: TreeShape, batch: int = 4096, seed: int = 0) -> float:
    """Tokens a pass that the law gives a shape, worked out with the tree's own code and without any model."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _expected_length(law, shape, batch)


def _expected_length(law: AcceptanceLaw, shape: TreeShape, batch: int) -> float:
    frontier, depths, size = root_frontier(batch), [], 0
    for _ in range(shape.depth):
        width = frontier.tokens_BK.shape[1]
        tokens_BKC = torch.arange(shape.top_k).expand(batch, width, shape.top_k)
        children = Children(tokens_BKC, law.log_chances(batch, width, shape.top_k, torch.device("cpu")))
        candidates, frontier = expand(children, frontier, shape.top_k, size)
        depths.append(candidates)
        size += candidates.scores_BC.shape[1]
    tree = select(pool(depths), shape.nodes)
    layout = tree_layout(with_root(tree.parents_BN), shape.depth)
    tokens_BR = torch.cat([tree.tokens_BN[:, :1], tree.tokens_BN], dim=1)
    accepted = accept_greedy(tokens_BR, layout, law.choices(tree, (100, 200)), shape.depth)
    return 1 + float(accepted.count_B.float().mean())
