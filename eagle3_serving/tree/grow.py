"""Growing the pool of a draft, depth by depth (EAGLE-3 section 3.1, EAGLE-2 section 4.1): whoever owns a KV cache steps.

Shape letters: B requests, K frontier nodes, C candidates, Q drafted-from nodes, T draft rows so far, H draft hidden size,
V draft vocabulary.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from eagle3_serving.tree.expand import Candidates, Children, Frontier, expand, pool, root_frontier

# children of the frontier [B, K, V] at a depth (1, 2, ...), with their log chances
Grow = Callable[[Tensor, int], Children]
# how many frontier nodes the next draft step runs on, told depth, pool so far and frontier; 0 ends the draft
Keep = Callable[[int, "list[Candidates]", Frontier], int]
# draft ids [B, K], their parents' states [B, K, H], depth and what each row sees of the draft rows so far, its own last,
# [B, K, T] -> logits [B, K, V] and states [B, K, H]
DraftRows = Callable[[Tensor, Tensor, int, Tensor], "tuple[Tensor, Tensor]"]


class Draft(NamedTuple):
    """`candidates` of the pool; `logits_BQV` of every node drafted from (root first; none where they were not to be kept),
    `source_BC`: the Q index of the node that each candidate became, -1 where it was not drafted from. `depth` of the
    deepest candidate."""

    candidates: Candidates
    logits_BQV: Tensor
    source_BC: Tensor
    depth: int


def grow_draft(
    logits_BV: Tensor,
    state_BH: Tensor,
    top_k: int,
    depth: int,
    grow: Grow,
    keep: Keep,
    draft_rows: DraftRows,
    keep_logits: bool = True,
) -> Draft:
    """A pool of candidates for each request, in draft ids, from what its last committed row gave.

    A draft row sees what its parent's row sees, and itself. Nothing is drafted from past `depth` - 1. The logits of all
    nodes together are large, and wanted only where proposals are drawn or a drafter is measured.
    """
    device = logits_BV.device
    logits_BKV, state_BKH = logits_BV[:, None], state_BH[:, None]
    batch = logits_BV.shape[0]
    depths: list[Candidates] = []
    laws, sources = [logits_BKV if keep_logits else logits_BKV[:, :0]], []
    frontier = root_frontier(batch, device)
    mask_BKT = torch.empty(batch, 1, 0, dtype=torch.bool, device=device)
    reached = size = 0
    for reached in range(1, depth + 1):
        candidates, frontier = expand(grow(logits_BKV, reached), frontier, top_k, size)
        depths.append(candidates)
        width = keep(reached, depths, frontier) if reached < depth else 0
        frontier = frontier.first(width)
        sources.append(_sources(candidates, frontier, size, mask_BKT.shape[2]))
        size += candidates.scores_BC.shape[1]
        if width == 0:
            break
        slots_BK1 = frontier.slots_BK[..., None]
        own_BKK = torch.eye(width, dtype=torch.bool, device=device).expand(batch, -1, -1)
        seen_BKT = mask_BKT.gather(1, slots_BK1.expand(-1, -1, mask_BKT.shape[2]))
        mask_BKT = torch.cat([seen_BKT, own_BKK], dim=2)
        hidden_BKH = state_BKH.gather(1, slots_BK1.expand(-1, -1, state_BKH.shape[2]))
        logits_BKV, state_BKH = draft_rows(frontier.tokens_BK, hidden_BKH, reached, mask_BKT)
        if keep_logits:
            laws.append(logits_BKV)
    return Draft(pool(depths), torch.cat(laws, dim=1), torch.cat(sources, dim=1), reached)


def _sources(candidates: Candidates, frontier: Frontier, size: int, rows: int) -> Tensor:
    """Which of a depth's candidates are drafted from, and as which: [B, C] int64, the root being 0."""
    source_BC = torch.full_like(candidates.tokens_BC, -1)
    index_K = torch.arange(frontier.nodes_BK.shape[1], device=source_BC.device) + 1 + rows
    return source_BC.scatter(1, frontier.nodes_BK - size, index_K.expand_as(frontier.nodes_BK))
