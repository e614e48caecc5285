"""The draft vocabulary: which target token each draft id stands for."""

import torch
from torch import Tensor, nn

from eagle3_serving.errors import InputError


class DraftVocabulary(nn.Module):
    """Maps draft ids to target ids. `target_ids` [Vd], int64, absolute; None means the identity."""

    def __init__(self, target_ids: Tensor | None, vocab_size: int, draft_vocab_size: int) -> None:
        super().__init__()
        if target_ids is None:
            if draft_vocab_size != vocab_size:
                raise InputError(
                    f"draft vocabulary has {draft_vocab_size} of {vocab_size} tokens but no map `d2t`; the checkpoint is incomplete"
                )
            target_ids = torch.arange(vocab_size)
        check_vocabulary(target_ids, vocab_size, draft_vocab_size)
        self.vocab_size = vocab_size
        self.target_ids: Tensor
        self.register_buffer("target_ids", target_ids.long())

    def to_target(self, draft_ids: Tensor) -> Tensor:
        """Draft ids of any shape -> target ids of the same shape."""
        return self.target_ids[draft_ids]

    def to_draft(self) -> Tensor:
        """[Vt] int64: the draft id of each target token, -1 for a token outside the draft vocabulary."""
        table_V = torch.full((self.vocab_size,), -1, dtype=torch.long, device=self.target_ids.device)
        table_V[self.target_ids] = torch.arange(len(self.target_ids), device=self.target_ids.device)
        return table_V


def check_vocabulary(target_ids: Tensor, vocab_size: int, draft_vocab_size: int) -> None:
    """Raise InputError unless the map has the right length, is in range and names no token twice."""
    if target_ids.shape != (draft_vocab_size,):
        raise InputError(
            f"d2t has shape {tuple(target_ids.shape)}, expected ({draft_vocab_size},) from draft_vocab_size"
        )
    if int(target_ids.min()) < 0 or int(target_ids.max()) >= vocab_size:
        raise InputError(f"d2t maps to a token outside 0..{vocab_size - 1}; is it stored as absolute ids, not offsets?")
    if len(torch.unique(target_ids)) != draft_vocab_size:
        raise InputError(
            "d2t maps two draft tokens to the same target token; is it stored as absolute ids, not offsets?"
        )
