"""What the drafter learns from: the target's auxiliary features and final hidden states, cached on disk."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from eagle3_serving.engine.target import Target
from eagle3_serving.train.data import Answer


@dataclass
class FeatureBatch:
    """Padded on the right. L tokens, R response rows; row r of request b is sequence position start_B[b] + r.

    A row at position i reads the features of i and token i + 1, and is taught by the target's state at i + 1.
    """

    tokens_BL: Tensor  # int64
    aux_BLF: Tensor
    final_BRH: Tensor  # the target's hidden state after its final norm, at position i + 1
    start_B: Tensor  # int64, the first response row: the last prompt position
    rows_B: Tensor  # int64, how many response rows

    @property
    def next_BR(self) -> Tensor:
        """The answer's own token that a row's draft is held against: the one at position i + 2."""
        offsets_R = torch.arange(self.final_BRH.shape[1], device=self.tokens_BL.device)
        return self.tokens_BL.gather(1, (self.start_B[:, None] + offsets_R + 2).clamp(max=self.tokens_BL.shape[1] - 1))

    @property
    def taught_BR(self) -> Tensor:
        """bool: rows with such a token; the last one has none."""
        return torch.arange(self.final_BRH.shape[1], device=self.rows_B.device) < self.rows_B[:, None] - 1

    def float(self) -> "FeatureBatch":
        return FeatureBatch(self.tokens_BL, self.aux_BLF.float(), self.final_BRH.float(), self.start_B, self.rows_B)

    def to(self, device: torch.device) -> "FeatureBatch":
        return FeatureBatch(*(getattr(self, field.name).to(device) for field in fields(self)))


@torch.inference_mode()
def extract_features(target: Target, answers: Sequence[Answer]) -> FeatureBatch:
    """One pass of the target over prompts and answers; `target` watches the boundaries that the drafter reads."""
    sequences = [answer.prompt_ids + answer.response_ids for answer in answers]
    length = max(map(len, sequences))
    tokens_BL = torch.zeros(len(answers), length, dtype=torch.long)
    for b, sequence in enumerate(sequences):
        tokens_BL[b, : len(sequence)] = torch.tensor(sequence)
    # right padding under a causal mask never reaches the real rows
    tokens_BL = tokens_BL.to(target.device)
    aux_BLF, final_BLH = target.hidden_states(tokens_BL)
    longest = max(len(answer.response_ids) for answer in answers)
    start_B = torch.tensor([len(answer.prompt_ids) - 1 for answer in answers], device=target.device)
    rows_B = torch.tensor([len(answer.response_ids) for answer in answers], device=target.device)
    next_BR = (start_B[:, None] + 1 + torch.arange(longest, device=target.device)).clamp(max=length - 1)
    final_BRH = final_BLH.gather(1, next_BR[..., None].expand(-1, -1, final_BLH.shape[-1]))
    return FeatureBatch(tokens_BL, aux_BLF, final_BRH, start_B, rows_B).float()


class FeatureCache:
    """One safetensors file a batch, bf16; written beside and renamed, so that a kill leaves no half file.

    The file's name is a hash of the tokens, so that other answers never meet features that are not theirs. Without a
    directory nothing is kept: right where the target is faster than the disk.
    """

    def __init__(self, directory: Path | None) -> None:
        self.directory = directory
        if directory is not None:
            directory.mkdir(parents=True, exist_ok=True)

    def get(self, answers: Sequence[Answer], extract: Callable[[Sequence[Answer]], FeatureBatch]) -> FeatureBatch:
        """The features of `answers`, computed at the first call; rounded to bf16 then too, so that a resumed run
        sees what an undisturbed one saw."""
        if self.directory is None:
            return extract(answers)
        tokens = repr([(answer.prompt_ids, answer.response_ids) for answer in answers])
        path = self.directory / f"{hashlib.sha256(tokens.encode()).hexdigest()[:24]}.safetensors"
        if not path.exists():
            self._save(path, extract(answers))
        return FeatureBatch(**load_file(path)).float()

    def _save(self, path: Path, batch: FeatureBatch) -> None:
        tensors = {field.name: getattr(batch, field.name) for field in fields(batch)}
        tensors = {name: (t.bfloat16() if t.is_floating_point() else t).contiguous() for name, t in tensors.items()}
        beside = path.with_name(f".{path.name}.partial")
        save_file(tensors, beside)
        beside.replace(path)
