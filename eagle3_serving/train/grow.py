"""A larger draft vocabulary for a drafter that is gone on from: the tokens it knows stay, the next most frequent join them.

A new token's row in the head is the target's own, mapped as the rows that the drafter has are mapped best from the target's: it proposes
the token at once, and learns from there.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor

from eagle3_serving.drafter import Drafter
from eagle3_serving.drafter.layers import weight_of
from eagle3_serving.train.closed_form import Moments
from eagle3_serving.train.data import Answer, most_frequent

_RIDGE = 1e-3  # of the mean diagonal


@torch.no_grad()
def grow_vocabulary(drafter: Drafter, answers: Iterable[Answer], size: int, target_head_VtH: Tensor) -> Drafter:
    """`drafter` with `size` draft tokens: its own, and the most frequent others of `answers`. `target_head_VtH`: the target's
    head, all of it."""
    known_V = drafter.vocabulary.target_ids
    counts = Counter(token for answer in answers for token in answer.response_ids)
    counts.update(dict.fromkeys(known_V.tolist(), counts.total() + 1))  # before all others
    target_ids = most_frequent(counts, drafter.config.vocab_size, size).to(known_V.device)
    grown = Drafter(replace(drafter.config, draft_vocab_size=size), target_ids)
    kept = {
        name: value for name, value in drafter.state_dict().items() if not name.startswith(("vocabulary", "lm_head"))
    }
    grown.load_state_dict(kept, strict=False)
    grown.to(known_V.device, drafter.dtype)
    head_VH = weight_of(drafter.lm_head)
    moments = Moments(head_VH.shape[1], head_VH.shape[1], known_V.device)
    moments.add(target_head_VtH[known_V].float(), head_VH.float())
    rows_VH = (target_head_VtH[target_ids].float() @ moments.solve(_RIDGE)).to(head_VH)
    rows_VH[torch.isin(target_ids, known_V)] = head_VH[known_V.argsort()]
    weight_of(grown.lm_head).copy_(rows_VH)
    return grown
