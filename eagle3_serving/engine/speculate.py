"""One speculative step of a batch: draft, choose a tree, verify it in one target pass, accept, move KV rows.

Shape letters: B requests, C candidates, F concatenated features, N draft nodes, R rows of the verify pass (root first), T packed
rows, D depths.
"""

import time
from functools import partial

import torch
from torch import Tensor

from eagle3_serving.drafter import Drafter
from eagle3_serving.engine.batch import Batch
from eagle3_serving.engine.draft import DraftSession
from eagle3_serving.engine.options import DecodeOptions, Step
from eagle3_serving.engine.policy import AutoPolicy, Experience, FixedPolicy, Policy
from eagle3_serving.engine.rows import plan_rows
from eagle3_serving.engine.watch import Verified, Watch
from eagle3_serving.tree import (
    PADDING,
    Acceptance,
    Candidates,
    Children,
    Draft,
    DraftTree,
    Grow,
    Noise,
    Proposals,
    TreeLayout,
    accept_greedy,
    accept_sampled,
    coupled_children,
    draw_children,
    graft,
    kv_moves,
    positions,
    prompt_lookup,
    top_children,
    tree_layout,
    with_root,
)
from eagle3_serving.tree.budget import CostModel
from eagle3_serving.tree.calibrate import Calibration, by_rank, lookup_prior

MAX_NGRAM = 3
LOOKUP_TOKENS = 8


class Speculator:
    """The drafter beside a batch. `calibration` None ranks by the drafter's own probabilities. `watch` is shown every verify
    pass."""

    def __init__(
        self,
        drafter: Drafter,
        batch: Batch,
        options: DecodeOptions,
        calibration: Calibration | None,
        costs: CostModel | None = None,
        experience: Experience | None = None,
        watch: Watch | None = None,
    ) -> None:
        self.batch, self.options, self.watch = batch, options, watch
        self.calibration = calibration if options.calibrated else None
        shape = options.shape
        if self.calibration is not None:
            self.calibration.place(batch.device, shape.top_k)
        self.draft = DraftSession(drafter, batch.slots, batch.capacity + shape.rows + 1, shape.depth)
        self.policy: Policy = FixedPolicy(shape)
        if options.mode == "auto":
            assert costs is not None
            self.policy = AutoPolicy(shape, costs, experience or Experience())

    # ---- the batch's slots

    def admitted(self, first: int, aux_TF: Tensor, next_T: Tensor, counts: list[int]) -> None:
        self.policy.admitted(len(counts), self.batch.size)
        for slot, parts in enumerate(zip(aux_TF.split(counts), next_T.split(counts), strict=True), first):
            self.draft.start(slot)
            self.draft.enqueue(slot, *parts)

    def moved(self, source: int, destination: int) -> None:
        self.draft.move_slot(source, destination)

    # ---- one step

    def step(self, left: float) -> list[Step]:
        """New tokens for every request, at least one each; the requests in flight want about `left` between them."""
        begun = time.perf_counter()
        if not self.policy.drafts(self.batch.size, self.draft.waiting(self.batch.size), left):
            steps = self.plain()
            self.policy.observe_plain(time.perf_counter() - begun)
            return steps
        absorbed = self.draft.absorb(self.batch.size)
        draft = self._propose()
        candidates = draft.candidates
        if self.options.lookup:
            candidates = self._with_lookup(candidates)
        tree = self.policy.select(candidates)
        counts = [1 + n for n in (tree.parents_BN != PADDING).sum(1).tolist()]
        drafted = time.perf_counter()
        if max(counts) == 1:
            steps = self.plain()
            self.policy.observe(absorbed, drafted - begun, time.perf_counter() - drafted, tree, steps)
            return steps
        steps = self.verify(draft, tree.first(max(counts) - 1), counts)
        self.policy.observe(absorbed, drafted - begun, time.perf_counter() - drafted, tree, steps)
        return steps

    def plain(self) -> list[Step]:
        steps, output = self.batch.plain_pass()
        assert output.aux_TF is not None
        for slot in range(self.batch.size):
            root_B = self.batch.roots_B[slot : slot + 1].clone()
            self.draft.enqueue(slot, output.aux_TF[slot : slot + 1], root_B)
        return steps

    # ---- drafting

    def _propose(self) -> Draft:
        shape = self.options.shape
        return self.draft.propose(self.batch.size, shape.top_k, shape.depth, self.grow(), self.policy.keep)

    def grow(self) -> Grow:
        top_k = self.options.shape.top_k
        if self.options.proposals == "drawn":
            return partial(self._drawn, top_k)
        likely: Grow = lambda logits_BKV, depth: top_children(logits_BKV, top_k)  # noqa: E731
        if self.options.proposals == "coupled" and self.options.sampling.temperature > 0:
            likely = partial(self._coupled, top_k, self.batch.root_noise())
        if self.calibration is None:
            return likely
        calibration = self.calibration
        return lambda logits_BKV, depth: calibration.apply(likely(logits_BKV, depth), depth)

    def _coupled(self, count: int, noise: Noise, logits_BKV: Tensor, depth: int) -> Children:
        """By the noise that will decide what is drawn at this depth."""
        gumbel_BV = noise.gumbel(depth - 1, self.draft.drafter.vocabulary.target_ids)
        return coupled_children(logits_BKV, count, self.batch.sampling(self.batch.size).temperature_B, gumbel_BV)

    def _drawn(self, count: int, logits_BKV: Tensor, depth: int) -> Children:
        temperature_B = self.batch.sampling(self.batch.size).temperature_B
        tokens_BKC = draw_children(logits_BKV, count, temperature_B, self.batch.generator).tokens_BKC
        # a shape that hangs on the drawn tokens would bend the output's law: only their rank may count
        return by_rank(tokens_BKC)

    def _with_lookup(self, candidates: Candidates) -> Candidates:
        batch = self.batch
        assert batch.text_BS is not None
        length_B = torch.tensor(batch.lengths, device=batch.device) + 1
        longest = max(batch.lengths) + 1
        found = prompt_lookup(batch.text_BS[: batch.size, :longest], length_B, MAX_NGRAM, LOOKUP_TOKENS)
        chance_BL = lookup_prior(found) if self.calibration is None else self.calibration.lookup(found)
        return graft(candidates, found, chance_BL)

    # ---- verifying

    def verify(self, draft: Draft, tree: DraftTree, counts: list[int]) -> list[Step]:
        batch = self.batch
        depth = min(tree.parents_BN.shape[1], max(draft.depth, LOOKUP_TOKENS if self.options.lookup else 0))
        layout = tree_layout(with_root(tree.parents_BN), depth)
        plan = plan_rows(0, batch.lengths, counts, batch.device, layout.ancestors_BNN)
        start_B = torch.tensor(batch.lengths, device=batch.device)
        tokens_BR = torch.cat([batch.roots_B[: batch.size, None], tree.tokens_BN], dim=1)
        output = batch.target.forward(plan.packed(tokens_BR), plan.packed(positions(layout, start_B)), batch.pool, plan)
        if batch.settled:
            accepted = accept_greedy(
                tokens_BR, layout, self.choices(plan.padded(output.logits_TV.argmax(-1)), tree), depth
            )
        else:
            accepted = self._accept_sampled(draft, tree, tokens_BR, layout, plan.padded(output.logits_TV), depth)
        if self.watch is not None:
            self.watch(Verified(draft, tree, plan.padded(output.logits_TV), accepted))
        # the step's wait for the device: how many were accepted decides the shapes of the next pass
        packed = torch.cat([accepted.rows_BD, accepted.count_B[:, None]], dim=1).tolist()
        kept = [[0, *rows[: rows[-1]]] for rows in packed]
        if any(rows != list(range(len(rows))) for rows in kept):
            batch.pool.move(*kv_moves(accepted, start_B))
        assert output.aux_TF is not None
        ends = [sum(counts[:slot]) for slot in range(batch.size)]
        index_T = torch.tensor(
            [end + row for end, rows in zip(ends, kept, strict=True) for row in rows], device=batch.device
        )
        next_T = self._next_tokens(tokens_BR, accepted, kept)
        sizes = [len(rows) for rows in kept]
        for slot, parts in enumerate(zip(output.aux_TF[index_T].split(sizes), next_T.split(sizes), strict=True)):
            self.draft.enqueue(slot, *parts)
        tokens = batch.commit(sizes, next_T, accepted.bonus_B)
        steps, at = [], 0
        for size, count in zip(sizes, counts, strict=True):
            steps.append(Step(tuple(tokens[at : at + size]), accepted=size - 1, nodes=count - 1))
            at += size
        return steps

    def choices(self, argmax_BR: Tensor, tree: DraftTree) -> Tensor:
        """What the target is taken to say after every row; a benchmark that simulates acceptance says otherwise."""
        return argmax_BR

    def _next_tokens(self, tokens_BR: Tensor, accepted: Acceptance, kept: list[list[int]]) -> Tensor:
        """The token after every kept row, packed: the next kept row's own, at last the bonus."""
        width = tokens_BR.shape[1]
        flat_BR = torch.cat([tokens_BR, accepted.bonus_B[:, None]], dim=1).flatten()
        index = [slot * (width + 1) + row for slot, rows in enumerate(kept) for row in [*rows[1:], width]]
        return flat_BR[torch.tensor(index, device=flat_BR.device)]

    def _accept_sampled(
        self, draft: Draft, tree: DraftTree, tokens_BR: Tensor, layout: TreeLayout, logits_BRV: Tensor, depth: int
    ) -> Acceptance:
        params = self.batch.sampling(self.batch.size)
        proposals = None
        if self.options.proposals == "drawn":
            scaled_BQV = draft.logits_BQV.float() / params.temperature_B[:, None, None]
            row_BN = draft.source_BC.gather(1, tree.pool_BN)
            row_BR = torch.cat([torch.zeros_like(row_BN[:, :1]), row_BN], dim=1)
            proposals = Proposals(scaled_BQV.softmax(-1), row_BR, self.draft.drafter.vocabulary.target_ids)
        return accept_sampled(
            tokens_BR,
            layout,
            logits_BRV,
            params,
            depth,
            self.batch.generator,
            proposals,
            max_children=self.options.shape.top_k,
            noise=self.batch.root_noise() if proposals is None else None,
        )
