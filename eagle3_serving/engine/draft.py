"""Drafting for a batch: absorb what the target has verified, then grow a pool of candidates (a chain is one child wide).

Shape letters: B requests, L rows, K frontier nodes, T draft rows so far (in a mask) or packed rows (in data), F
concatenated features, V draft vocabulary, D depths of one pass, E requests with rows.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from eagle3_serving.drafter import Attend, Drafter
from eagle3_serving.engine.rows import KVPool, RowPlan, plan_rows
from eagle3_serving.tree import Children, Draft, Grow, Keep, grow_draft


@dataclass(frozen=True)
class TreeShape:
    """At most `nodes` nodes of the `top_k` best children of the `top_k` best nodes of each of `depth` depths."""

    nodes: int
    depth: int
    top_k: int

    @classmethod
    def chain(cls, k: int) -> "TreeShape":
        """One node a depth, `k` deep."""
        return cls(nodes=k, depth=k, top_k=1)

    @property
    def rows(self) -> int:
        """Draft steps' rows that stand in the draft cache at once: the last depth is never stepped on."""
        return (self.depth - 1) * self.top_k


class DraftSession:
    """The drafter's side of the requests in slots 0, 1, ... Row i: features of position i, token i + 1, rotary position i."""

    max_pending = (
        1024  # rows; older ones are forgotten while nothing is drafted: that costs acceptance, never exactness
    )

    few = 4  # rows a request: more than so many, and all but the last are only cached

    def __init__(self, drafter: Drafter, slots: int, capacity: int, depth: int = 1) -> None:
        """`depth`: how deep a parallel drafter drafts in its one pass; others go a depth a step, as far as they are asked."""
        self.drafter = drafter
        self.device = drafter.vocabulary.target_ids.device
        self.pool = KVPool(drafter.config.num_layers, slots, capacity)
        self.committed, self.position = [0] * slots, [0] * slots
        self.pending: list[list[tuple[Tensor, Tensor]]] = [[] for _ in range(slots)]
        config = drafter.config
        # masks stand after a request's last row, and the next rows overwrite them in the cache
        self.ahead = depth - 1 if config.parallel else 0
        self.masks = [drafter.masks(self.ahead)] if self.ahead else []
        # what the pass that took in the last rows gave at the last of them, and at each mask
        self.hidden_BDH = torch.zeros(
            slots, 1 + self.ahead, config.hidden_size, dtype=drafter.dtype, device=self.device
        )
        self.feedback_BH = torch.zeros(slots, config.hidden_size, dtype=drafter.dtype, device=self.device)

    def start(self, slot: int) -> None:
        """A new request in `slot`."""
        self.committed[slot] = self.position[slot] = 0
        self.pending[slot] = []

    @torch.inference_mode()
    def move_slot(self, source: int, destination: int) -> None:
        """The request in `source` goes on in `destination`."""
        self.pool.copy_slot(source, destination, self.committed[source])
        for numbers in (self.committed, self.position):
            numbers[destination] = numbers[source]
        for states in (self.hidden_BDH, self.feedback_BH):
            states[destination] = states[source]
        self.pending[destination] = self.pending[source]
        self.pending[source] = []

    def enqueue(self, slot: int, aux_LF: Tensor, next_tokens_L: Tensor) -> None:
        """Keep rows of true features [L, F] and the tokens [L] after them until the next draft."""
        waiting = self.pending[slot]
        waiting.append((aux_LF, next_tokens_L))
        while len(waiting) > 1 and sum(len(tokens) for _, tokens in waiting) > self.max_pending:
            self.position[slot] += len(waiting.pop(0)[1])

    def waiting(self, batch: int) -> int:
        """Rows noted for slots 0 .. batch - 1 that the drafter has not taken in."""
        return sum(len(tokens) for waiting in self.pending[:batch] for _, tokens in waiting)

    @torch.inference_mode()
    def absorb(self, batch: int) -> int:
        """Commit what was noted for slots 0 .. batch - 1; each one's last row predicts its first depth, masks the others.
        Returns the rows that were committed."""
        counts = [sum(len(tokens) for _, tokens in waiting) for waiting in self.pending[:batch]]
        if not any(counts):
            return 0
        ended = [slot for slot, count in enumerate(counts) if count]
        rows = [count + self.ahead if count else 0 for count in counts]
        parts = [part for slot in ended for part in (*self.pending[slot], *self.masks)]
        aux_TF, tokens_T = torch.cat([aux for aux, _ in parts]), torch.cat([tokens for _, tokens in parts])
        plan = plan_rows(0, self.committed[:batch], rows, self.device)
        skipped = [position - known for position, known in zip(self.position, self.committed, strict=True)]
        positions_T = plan.place_T + torch.tensor(skipped, device=self.device)[plan.slot_T]
        hidden_TH = self.drafter.fuse(aux_TF[None])[0]
        # of every request its last row and its masks
        drafting = 1 + self.ahead
        last_ED = torch.tensor([sum(rows[: slot + 1]) - drafting for slot in ended], device=self.device)[:, None]
        last_ED = last_ED + torch.arange(drafting, device=self.device)
        if self.drafter.config.num_layers == 1 and sum(counts) > self.few * len(ended):
            # what one layer caches of a row hangs on that row alone: attention and MLP are for the last ones
            k_1TKD, v_1TKD = self.drafter.keys_values(tokens_T[None], hidden_TH[None], positions_T[None])
            self.pool.write(0, k_1TKD[0], v_1TKD[0], plan)
            last_T = last_ED.flatten()
            tokens_T, hidden_TH, positions_T = tokens_T[last_T], hidden_TH[last_T], positions_T[last_T]
            starts = [known + max(count - 1, 0) for known, count in zip(self.committed, counts, strict=False)]
            plan = plan_rows(0, starts, [drafting if count else 0 for count in counts], self.device)
            last_ED = torch.arange(len(tokens_T), device=self.device).reshape(-1, drafting)
        plan.look_back(self.drafter.config.sliding_window, plan.place_T)
        step = self.drafter.step(tokens_T[None], hidden_TH[None], positions_T[None], self._attend(plan))
        slots = torch.tensor(ended, device=self.device)
        self.hidden_BDH[slots] = step.hidden_BLH[0, last_ED]
        self.feedback_BH[slots] = step.feedback_BLH[0, last_ED[:, 0]]
        for slot, count in enumerate(counts):
            self.committed[slot] += count
            self.position[slot] += count
            self.pending[slot] = []
        return sum(counts)

    @torch.inference_mode()
    def propose(self, batch: int, top_k: int, depth: int, grow: Grow, keep: Keep) -> Draft:
        """A pool of candidates for each of slots 0 .. batch - 1, in target ids."""
        logits_BV, state_BH = self.drafter.logits(self.hidden_BDH[:batch, 0]), self.feedback_BH[:batch]
        if self.drafter.config.parallel:
            reached = min(depth, 1 + self.ahead)
            grow = grow if self.drafter.config.causal_head else _once_a_depth(grow)
            draft = grow_draft(logits_BV, state_BH, top_k, reached, grow, keep, self._drafted)
        else:
            draft = grow_draft(logits_BV, state_BH, top_k, depth, grow, keep, self._step)
        tokens_BC = self.drafter.vocabulary.to_target(draft.candidates.tokens_BC)
        return draft._replace(candidates=draft.candidates._replace(tokens_BC=tokens_BC))

    def _drafted(self, draft_ids_BK: Tensor, hidden_BKH: Tensor, depth: int, mask_BKT: Tensor) -> tuple[Tensor, Tensor]:
        """From what the one pass gave at `depth`."""
        masked_B1H = self.hidden_BDH[: len(hidden_BKH), depth, None]
        if not self.drafter.config.causal_head:
            return self.drafter.logits(masked_B1H).expand(-1, draft_ids_BK.shape[1], -1), hidden_BKH
        tokens_BK = self.drafter.vocabulary.to_target(draft_ids_BK)
        state_BKH = self.drafter.follow(tokens_BK, hidden_BKH, masked_B1H.expand_as(hidden_BKH))
        return self.drafter.logits(state_BKH), state_BKH

    def _step(self, draft_ids_BK: Tensor, hidden_BKH: Tensor, depth: int, mask_BKT: Tensor) -> tuple[Tensor, Tensor]:
        batch, width = draft_ids_BK.shape
        plan, position_B = self.place(batch, width, mask_BKT)
        position_B = position_B + depth - 1
        if self.drafter.config.sliding_window is not None:
            committed_B = torch.tensor(self.committed[:batch], device=self.device)
            plan.look_back(self.drafter.config.sliding_window, (committed_B + depth - 1)[plan.slot_T])
        tokens_BK = self.drafter.vocabulary.to_target(draft_ids_BK)
        step = self.drafter.step(
            tokens_BK.flatten()[None], hidden_BKH.flatten(0, 1)[None], position_B[plan.slot_T][None], self._attend(plan)
        )
        logits_BKV = self.drafter.logits(step.hidden_BLH)[0].unflatten(0, (batch, width))
        return logits_BKV, step.feedback_BLH[0].unflatten(0, (batch, width))

    def place(self, batch: int, width: int, mask_BKT: Tensor) -> tuple[RowPlan, Tensor]:
        """Where the rows of a draft step stand in the draft cache, and each request's next rotary position [B]."""
        committed, before = self.committed[:batch], mask_BKT.shape[2] - width
        plan = plan_rows(0, [rows + before for rows in committed], [width] * batch, self.device, mask_BKT, committed)
        return plan, torch.tensor(self.position[:batch], device=self.device)

    def _attend(self, plan: RowPlan) -> Attend:
        def attend(layer: int, q_BLAD: Tensor, k_BLKD: Tensor, v_BLKD: Tensor) -> Tensor:
            return self.pool.attend(layer, q_BLAD[0], k_BLKD[0], v_BLKD[0], plan)[None]

        return attend


def _once_a_depth(grow: Grow) -> Grow:
    """The same children for every node of a depth, whose logits are the same."""

    def grown(logits_BKV: Tensor, depth: int) -> Children:
        width = logits_BKV.shape[1]
        return Children(*(x_B1C.expand(-1, width, -1) for x_B1C in grow(logits_BKV[:, :1], depth)))

    return grown
