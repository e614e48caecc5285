"""How much to draft and to verify each step: a fixed shape, or what the costs and the acceptance say.

Shape letters: B requests, C candidates, K frontier nodes, M nodes of several requests together.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from eagle3_serving.engine.draft import TreeShape
from eagle3_serving.engine.options import Step
from eagle3_serving.tree import Candidates, DraftTree, Frontier, select, select_over_batch
from eagle3_serving.tree.budget import CostModel, Forecast, best_nodes, forecast


class Policy(Protocol):
    def admitted(self, requests: int, batch: int) -> None:
        """`requests` of the `batch` in flight are new."""

    def drafts(self, batch: int, waiting: int, left: float) -> bool:
        """Whether this step drafts at all. `waiting` rows would have to be taken in first; about `left` tokens of the
        requests in flight are still to come."""

    def keep(self, depth: int, depths: Sequence[Candidates], frontier: Frontier) -> int:
        """How many frontier nodes the next draft step runs on; 0 ends the draft."""

    def select(self, candidates: Candidates) -> DraftTree:
        """The nodes to verify, in target ids."""

    def observe(self, absorbed: int, draft_s: float, verify_s: float, tree: DraftTree, steps: Sequence[Step]) -> None:
        """What came of it."""

    def observe_plain(self, seconds: float) -> None:
        """What a step without drafting took."""


class FixedPolicy:
    """The same shape every step."""

    def __init__(self, shape: TreeShape) -> None:
        self.shape = shape

    def admitted(self, requests: int, batch: int) -> None:
        """Nothing to forget."""

    def drafts(self, batch: int, waiting: int, left: float) -> bool:
        return True

    def keep(self, depth: int, depths: Sequence[Candidates], frontier: Frontier) -> int:
        return frontier.nodes_BK.shape[1]

    def select(self, candidates: Candidates) -> DraftTree:
        return select(candidates, self.shape.nodes)

    def observe(self, absorbed: int, draft_s: float, verify_s: float, tree: DraftTree, steps: Sequence[Step]) -> None:
        """Nothing to learn."""

    def observe_plain(self, seconds: float) -> None:
        """Nothing to learn."""


@dataclass
class Track:
    """Decaying sums of what was foretold and of what came."""

    seen: float = 0.0
    expected: float = 0.0
    steps: float = 0.0

    def add(self, seen: float, expected: float, keep: float = 0.97) -> None:
        self.fade(keep)
        self.seen, self.expected, self.steps = self.seen + seen, self.expected + expected, self.steps + 1

    def fade(self, keep: float) -> None:
        self.seen, self.expected, self.steps = self.seen * keep, self.expected * keep, self.steps * keep

    @property
    def ratio(self) -> float:
        """Seen over expected."""
        return self.seen / self.expected


@dataclass
class Arms:
    """Plain decoding and drafting at about one batch size: how true the forecast of each was, and whose turn it is."""

    plain: Track = field(default_factory=Track)  # seconds
    drafting: Track = field(default_factory=Track)  # tokens
    idle: int = 0  # steps since drafting was last tried
    drafted: int = 0  # steps since plain decoding was last tried
    patience: int = 200  # idle steps after which drafting is tried again; doubles with every try that failed


class Experience:
    """What lately happened, kept across runs: survivals of drafted nodes, and how true they and the costs were."""

    def __init__(self, requests: int = 96, nodes: int = 48, max_depth: int = 16, max_children: int = 64) -> None:
        self.survival: deque[Tensor] = deque(maxlen=requests)  # one [nodes] a request
        self.nodes = nodes
        self.accepted = self.expected = 8.0  # decaying sums; their start is a belief in the calibration
        self.draft_scale = 1.0  # how much dearer drafting is, beside verifying, than the profile says
        self.steps_per_draft, self.rows_per_step = 2.0, 2.0
        self.arms: dict[int, Arms] = {}  # by the batch size's power of two
        self.answer_share = 1.0  # of the tokens asked for, what answers come to
        self.child_chance = [torch.tensor([0.5, 0.1, 0.05]) for _ in range(max_depth)]

    @property
    def truth(self) -> float:
        """Accepted over expected nodes."""
        return self.accepted / self.expected

    def at(self, batch: int) -> Arms:
        return self.arms.setdefault((batch - 1).bit_length(), Arms())

    def answered(self, share: float) -> None:
        """A request ended after this share of the tokens asked for."""
        self.answer_share += 0.1 * (share - self.answer_share)

    def add_survival(self, scores_BC: Tensor) -> None:
        width = min(self.nodes, scores_BC.shape[1])
        self.survival.extend(scores_BC.topk(width, dim=1).values.exp().unbind(0))


class AutoPolicy:
    """Depth, width and number of nodes by price: a node is verified, and drafted from, only where it pays.

    Whether to draft at all is asked of both sides' record at this batch size, for a forecast alone errs by more than what
    there is to gain; and of the record of the requests in flight, for texts differ. `shape` bounds the tree. Works a step at a time, and reads scores on the host once a depth.
    """

    least_requests = 8  # drafts seen before a forecast is trusted
    least_steps = 12.0  # of drafting at a batch size before its own rate corrects the forecast
    prior_steps = 8.0  # of drafting that the record of all requests weighs beside that of those in flight
    least_plain = 3.0  # plain steps at a batch size before anything is drafted there
    plain_every = 40  # steps of drafting after which one decodes plainly, to keep that rate true
    longest_patience = 3200
    margin = 1.03  # what drafting must be ahead by: less is noise, and plain decoding is the safe side of it
    refresh_every = 8

    def __init__(self, shape: TreeShape, costs: CostModel, experience: Experience) -> None:
        self.shape, self.costs, self.known = shape, costs, experience
        self.batch = 0
        self.outlook = Forecast(0.0, 0.0, 0.0)
        self.slower = 1.0  # than the profile, by plain steps at this batch size
        self.forecast_rate = 0.0  # the forecast's own rate of drafting, before its record corrects it
        self.own = Track()  # of drafting, by the requests in flight
        self.age = 0
        self.step_rows: list[int] = []
        self.parents_BK: Tensor | None = None
        self.threshold = 0.0

    # ---- whether

    def admitted(self, requests: int, batch: int) -> None:
        self.own.fade(1 - requests / batch)

    def drafts(self, batch: int, waiting: int, left: float) -> bool:
        if batch != self.batch or self.age >= self.refresh_every:
            self.batch, self.age = batch, 0
            self.outlook = self._forecast(batch)
        self.age += 1
        self.step_rows, self.parents_BK = [], None
        nodes = max(1.0, self.outlook.nodes)
        slope = self.costs.target.at(batch, batch + nodes + batch) - self.costs.target.at(batch, batch + nodes)
        self.threshold = self.price * max(slope, 0.0) / batch / max(self.known.truth, 1e-3)
        arms = self.known.at(batch)
        if arms.plain.steps < self.least_plain or arms.drafted >= self.plain_every:
            return False
        if len(self.known.survival) < self.least_requests or self._pays(waiting, left):
            arms.idle = 0
            return True
        arms.idle += 1
        if arms.idle < arms.patience:
            return False
        arms.idle, arms.patience = 0, min(2 * arms.patience, self.longest_patience)
        arms.drafting, self.own = Track(), Track()  # the forecast decides anew
        return True

    def _pays(self, waiting: int, left: float) -> bool:
        """Drafting is ahead, the rows to take in first being spread over the tokens to come."""
        tokens = max(left, 1.0)
        once = self.costs.absorb.at(self.batch, waiting) * self.slower if waiting > 2 * self.batch else 0.0
        return tokens / (tokens / self.outlook.drafting + once) > self.outlook.plain * self.margin

    def _forecast(self, batch: int) -> Forecast:
        known, arms = self.known, self.known.at(batch)
        self.slower = arms.plain.ratio if arms.plain.steps >= self.least_plain else 1.0
        plain = batch / (self.costs.target.at(batch, batch) * self.slower)
        if len(known.survival) < self.least_requests:
            self.forecast_rate = plain
            return Forecast(plain, plain, batch)
        rows = batch * known.rows_per_step
        # what is accepted is taken in by the next draft
        taken_in = self.costs.absorb.at(batch, 2 * batch)
        seconds = taken_in + known.steps_per_draft * self.costs.step.at(batch, rows)
        survival_M = torch.cat(list(known.survival)) * known.truth
        found = forecast(self.costs, batch, survival_M, len(known.survival), seconds * known.draft_scale)
        self.forecast_rate = found.drafting / self.slower
        # what came of it says more than what was to come
        truth = arms.drafting.ratio if arms.drafting.steps >= self.least_steps else 1.0
        if self.own.steps:
            own = self.own.steps / (self.own.steps + self.prior_steps)
            truth += own * (self.own.ratio - truth)
        return Forecast(plain, self.forecast_rate * truth, found.nodes)

    @property
    def price(self) -> float:
        """What a second of the profile is worth, in tokens."""
        return self.outlook.price * self.slower

    # ---- how much

    def keep(self, depth: int, depths: Sequence[Candidates], frontier: Frontier) -> int:
        self._learn_children(depth, depths[-1].scores_BC)
        score_BK = frontier.scores_BK.exp()
        width = int((score_BK > self.threshold).sum(1).max())
        if width == 0:
            return 0
        width = min(width, self.shape.top_k)
        chance_C = self.known.child_chance[min(depth, len(self.known.child_chance) - 1)]
        hope = score_BK[:, :width, None] * chance_C.to(score_BK.device) - self.threshold
        gain = float(hope.clamp(min=0).sum()) * self.known.truth
        cost = self.costs.step.at(self.batch, self.batch * width) * self.known.draft_scale
        if gain <= self.price * cost:
            return 0
        self.step_rows.append(width)
        self.parents_BK = frontier.scores_BK[:, :width]
        return width

    def _learn_children(self, depth: int, scores_BC: Tensor) -> None:
        """The mean chance of a frontier node's first three children at this depth."""
        scores_BKC = (
            scores_BC[:, None] if self.parents_BK is None else scores_BC.unflatten(1, (self.parents_BK.shape[1], -1))
        )
        parents_BK = scores_BC.new_zeros(scores_BC.shape[0], 1) if self.parents_BK is None else self.parents_BK
        chance_BKC = (scores_BKC[..., :3] - parents_BK[..., None]).exp().nan_to_num(0.0)
        place = min(depth, len(self.known.child_chance)) - 1
        old, new = self.known.child_chance[place], chance_BKC.mean((0, 1)).cpu()
        self.known.child_chance[place] = new if old.shape != new.shape else old.lerp(new, 0.05)

    def select(self, candidates: Candidates) -> DraftTree:
        known = self.known
        known.add_survival(candidates.scores_BC)
        limit = self.batch * self.shape.nodes
        survival_M = candidates.scores_BC.flatten().exp() * known.truth
        survival_M = survival_M.topk(min(limit, 4 * int(self.batch + self.outlook.nodes) + 64, len(survival_M))).values
        nodes = best_nodes(survival_M, self.costs.target, self.batch, self.price, limit)
        return select_over_batch(candidates, nodes, min(nodes, self.shape.nodes))

    # ---- what came of it

    def observe_plain(self, seconds: float) -> None:
        arms = self.known.at(self.batch)
        arms.plain.add(seconds, self.costs.target.at(self.batch, self.batch))
        arms.drafted = 0

    def observe(self, absorbed: int, draft_s: float, verify_s: float, tree: DraftTree, steps: Sequence[Step]) -> None:
        known, batch = self.known, self.batch
        live = tree.scores_BN > -torch.inf
        nodes = int(live.sum())
        if nodes:
            known.accepted = known.accepted * 0.99 + sum(step.accepted or 0 for step in steps)
            known.expected = known.expected * 0.99 + float(tree.scores_BN.exp().sum())
        if absorbed <= 12 * batch:  # a prompt taken in is paid for once, not every step
            tokens = sum(len(step.token_ids) for step in steps)
            known.at(batch).drafting.add(tokens, self.forecast_rate * (draft_s + verify_s), keep=0.99)
            self.own.add(tokens, self.forecast_rate * (draft_s + verify_s))
        known.at(batch).drafted += 1
        verify = self.costs.target.at(batch, batch + nodes)
        draft = self.costs.absorb.at(batch, absorbed) + sum(
            self.costs.step.at(batch, batch * w) for w in self.step_rows
        )
        known.draft_scale = _follow(known.draft_scale, draft_s / draft * verify / verify_s)
        known.steps_per_draft += 0.05 * (len(self.step_rows) - known.steps_per_draft)
        if self.step_rows:
            known.rows_per_step += 0.05 * (sum(self.step_rows) / len(self.step_rows) - known.rows_per_step)


def _follow(scale: float, seen: float) -> float:
    """Slowly, and never far: one stalled step must not switch drafting off."""
    return min(2.0, max(0.5, scale + 0.02 * (min(seen, 4.0) - scale)))
