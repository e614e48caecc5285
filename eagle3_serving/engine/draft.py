"""Drafting: absorb what the target has verified, then grow a tree (a chain is a tree one child wide).

Shape letters: B requests, L rows, K frontier nodes, T draft rows so far, S rows in use, F concatenated features.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from eagle3_serving.drafter import Drafter
from eagle3_serving.engine.cache import DraftCache
from eagle3_serving.tree import Candidates, DraftTree, expand, pool, root_frontier, select


@dataclass(frozen=True)
class TreeShape:
    """At most `nodes` nodes of the `top_k` best children of the `top_k` best nodes of each of `depth` depths."""

    nodes: int
    depth: int
    top_k: int

    @classmethod
    def chain(cls, k: int) -> "TreeShape":
        return cls(nodes=k, depth=k, top_k=1)

    @property
    def rows(self) -> int:
        """Draft steps' rows that stand in the draft cache at once: the last depth is never stepped on."""
        return (self.depth - 1) * self.top_k


class DraftSession:
    """The drafter's side of one generation. Row i: features of position i, token i + 1, rotary position i."""

    def __init__(self, drafter: Drafter, capacity: int) -> None:
        self.drafter = drafter
        self.cache = DraftCache(drafter.config.num_layers, capacity)
        self.logits_B1V = self.feedback_B1H = torch.empty(0)

    @torch.inference_mode()
    def absorb(self, aux_BLF: Tensor, next_tokens_BL: Tensor) -> None:
        """Commit rows of true features [B, L, F] and the tokens [B, L] after them; the last row predicts the tree's first depth."""
        self.cache.drop_draft()
        start, rows = self.cache.committed, next_tokens_BL.shape[1]
        places_S = torch.arange(start + rows, device=aux_BLF.device)
        mask_BLS = (places_S <= places_S[start:, None])[None] if rows > 1 else None
        hidden_BLH = self.drafter.fuse(aux_BLF)
        step = self.drafter.step(next_tokens_BL, hidden_BLH, places_S[None, start:], self.cache.attend(mask_BLS))
        self.cache.committed = start + rows
        self.logits_B1V = self.drafter.logits(step.hidden_BLH[:, -1:])
        self.feedback_B1H = step.feedback_BLH[:, -1:]

    @torch.inference_mode()
    def propose(self, shape: TreeShape) -> DraftTree:
        """The dynamic draft tree (EAGLE-3 section 3.1, EAGLE-2 section 4), in target token ids."""
        batch, device = self.logits_B1V.shape[0], self.logits_B1V.device
        logits_BKV, feedback_BKH = self.logits_B1V, self.feedback_B1H
        depths: list[Candidates] = []
        frontier, size = root_frontier(batch, device), 0
        mask_BKT = torch.empty(batch, 1, 0, dtype=torch.bool, device=device)
        for depth in range(1, shape.depth + 1):
            candidates, frontier = expand(logits_BKV, frontier, shape.top_k, size)
            depths.append(candidates)
            size += candidates.scores_BC.shape[1]
            if depth == shape.depth:
                break
            slots_BK1 = frontier.slots_BK[..., None]
            width = slots_BK1.shape[1]
            # a draft row sees what its parent's row sees, and itself
            own_BKK = torch.eye(width, dtype=torch.bool, device=device).expand(batch, -1, -1)
            seen_BKT = mask_BKT.gather(1, slots_BK1.expand(-1, -1, mask_BKT.shape[2]))
            mask_BKT = torch.cat([seen_BKT, own_BKK], dim=2)
            hidden_BKH = feedback_BKH.gather(1, slots_BK1.expand(-1, -1, feedback_BKH.shape[2]))
            logits_BKV, feedback_BKH = self._step(frontier.tokens_BK, hidden_BKH, depth, mask_BKT)
        self.cache.drop_draft()
        tree = select(pool(depths), shape.nodes)
        return tree._replace(tokens_BN=self.drafter.vocabulary.to_target(tree.tokens_BN))

    def _step(self, draft_ids_BK: Tensor, hidden_BKH: Tensor, depth: int, mask_BKT: Tensor) -> tuple[Tensor, Tensor]:
        committed = self.cache.committed
        seen_BKS = torch.ones(*mask_BKT.shape[:2], committed, dtype=torch.bool, device=mask_BKT.device)
        attend = self.cache.attend(torch.cat([seen_BKS, mask_BKT], dim=2))
        positions_BK = torch.full_like(draft_ids_BK, committed - 1 + depth)
        tokens_BK = self.drafter.vocabulary.to_target(draft_ids_BK)
        step = self.drafter.step(tokens_BK, hidden_BKH, positions_BK, attend)
        return self.drafter.logits(step.hidden_BLH), step.feedback_BLH
