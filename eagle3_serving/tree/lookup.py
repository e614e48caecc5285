"""A branch for the tree out of the text itself: prompt lookup decoding (Saxena 2023), and its graft onto a pool.

Shape letters: B requests, S places of the text, L tokens of the branch, C candidates in the pool, P = C + L candidates
after the graft.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from eagle3_serving.tree.expand import Candidates
from eagle3_serving.tree.layout import NO_PARENT


class Lookup(NamedTuple):
    """`tokens_BL` the continuation's target ids, 0 past `length_B`; `match_B`: how many last tokens matched. int64."""

    tokens_BL: Tensor
    length_B: Tensor
    match_B: Tensor


def prompt_lookup(history_BS: Tensor, length_B: Tensor, max_ngram: int, max_tokens: int) -> Lookup:
    """What followed the last tokens when they stood in the text before (Saxena 2023, "Prompt Lookup Decoding").

    The text of request b is `history_BS[b, :length_B[b]]`: prompt and everything generated, the last token included.
    The longest suffix of at most `max_ngram` tokens that stood there earlier counts, of several places the most recent.
    The continuation is cut at the text's end, which is reached where the earlier place overlaps the suffix.
    """
    size = history_BS.shape[1]
    place_S = torch.arange(size, device=history_BS.device)
    last_B1 = length_B[:, None] - 1
    # an n-gram may end at every place with a token after it; each round looks one token further back from all of them
    alike_BS = place_S < last_B1
    matched_BS = torch.zeros(history_BS.shape, dtype=torch.long, device=history_BS.device)
    for back in range(min(max_ngram, size)):
        wanted_B1 = history_BS.gather(1, (last_B1 - back).clamp(min=0))
        alike_BS = alike_BS & pad(history_BS[:, : size - back] == wanted_B1, (back, 0))
        matched_BS = matched_BS + alike_BS
    # one maximum for both wishes: the longest match first, then the latest place
    best_B = (matched_BS * size + place_S).amax(dim=1)
    match_B, end_B1 = best_B // size, (best_B % size)[:, None]
    length_B = torch.where(match_B > 0, last_B1[:, 0] - end_B1[:, 0], 0).clamp(max=max_tokens)
    step_L = torch.arange(max_tokens, device=history_BS.device)
    tokens_BL = history_BS.gather(1, (end_B1 + 1 + step_L).clamp(max=size - 1)).long()
    return Lookup(tokens_BL.masked_fill(step_L >= length_B[:, None], 0), length_B, match_B)


def graft(candidates: Candidates, lookup: Lookup, log_chance_BL: Tensor) -> Candidates:
    """The pool with the lookup's branch in it; the pool's tokens must be target ids, and the pool may be empty.

    Where the branch repeats a node (same parent, same token), that node stays and its score rises to the branch's if
    that is better; elsewhere a node is appended. `log_chance_BL` is the log-probability of each branch token given the
    ones before it. L slots are added at the end; those not needed have score -inf, which `select` never picks.
    """
    size, length = candidates.scores_BC.shape[1], lookup.tokens_BL.shape[1]
    tokens_BP = torch.cat([candidates.tokens_BC, lookup.tokens_BL], dim=1)
    parents_BP = pad(candidates.parents_BC, (0, length), value=NO_PARENT)
    scores_BP = pad(candidates.scores_BC, (0, length), value=-torch.inf)
    # no chance above 1, so that no child can score above its parent
    chance_BL = log_chance_BL.to(scores_BP.dtype).nan_to_num(nan=-torch.inf, neginf=-torch.inf).clamp(max=0)
    node_B = torch.full_like(lookup.length_B, NO_PARENT)
    score_B = scores_BP.new_zeros(scores_BP.shape[0])
    for depth in range(length):
        twin_BP = (parents_BP == node_B[:, None]) & (tokens_BP == lookup.tokens_BL[:, depth, None])
        own_B, twin_B = scores_BP.masked_fill(~twin_BP, -torch.inf).max(dim=1)
        live_B = depth < lookup.length_B
        merged_B = live_B & (own_B > -torch.inf)
        score_B = torch.maximum(own_B, score_B + chance_BL[:, depth]).masked_fill(~live_B, -torch.inf)
        slot_B = torch.where(merged_B, twin_B, size + depth)
        parents_BP[:, size + depth] = torch.where(merged_B, NO_PARENT, node_B)
        scores_BP = scores_BP.scatter(1, slot_B[:, None], score_B[:, None])
        node_B = slot_B
    return Candidates(tokens_BP, parents_BP, scores_BP)
