"""What the drafter learns from: the target's auxiliary features and final hidden states, cached on disk."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

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

    def float(self) -> "FeatureBatch":
        return FeatureBatch(self.tokens_BL, self.aux_BLF.float(), self.final_BRH.float(), self.start_B, self.rows_B)


class FeatureExtractor:
    """Runs a Hugging Face causal LM and keeps only the boundaries the drafter reads."""

    def __init__(self, model: nn.Module, aux_layers: Sequence[int]) -> None:
        self.model = model
        self.body: nn.Module = model.model  # type: ignore[assignment]
        self.aux_layers = tuple(aux_layers)

    @torch.inference_mode()
    def __call__(self, answers: Sequence[Answer]) -> FeatureBatch:
        sequences = [answer.prompt_ids + answer.response_ids for answer in answers]
        length = max(map(len, sequences))
        tokens_BL = torch.zeros(len(answers), length, dtype=torch.long)
        for b, sequence in enumerate(sequences):
            tokens_BL[b, : len(sequence)] = torch.tensor(sequence)
        kept: dict[int, Tensor] = {}
        layers: nn.ModuleList = self.body.layers  # type: ignore[assignment]
        hooks = [
            layers[k].register_forward_pre_hook(lambda _, args, k=k: kept.__setitem__(k, args[0]))
            for k in self.aux_layers
        ]
        try:
            # right padding under a causal mask never reaches the real rows
            final_BLH = self.body(input_ids=tokens_BL, use_cache=False).last_hidden_state
        finally:
            for hook in hooks:
                hook.remove()
        start_B = torch.tensor([len(answer.prompt_ids) - 1 for answer in answers])
        rows_B = torch.tensor([len(answer.response_ids) for answer in answers])
        next_BR = (start_B[:, None] + 1 + torch.arange(int(rows_B.max()))).clamp(max=length - 1)
        final_BRH = final_BLH.gather(1, next_BR[..., None].expand(-1, -1, final_BLH.shape[-1]))
        aux_BLF = torch.cat([kept[k] for k in self.aux_layers], dim=-1)
        return FeatureBatch(tokens_BL, aux_BLF, final_BRH, start_B, rows_B)


class FeatureCache:
    """One safetensors file a batch, bf16; written beside and renamed, so that a kill leaves no half file."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)

    def load(self, key: str) -> FeatureBatch | None:
        path = self.directory / f"{key}.safetensors"
        return FeatureBatch(**load_file(path)).float() if path.exists() else None

    def save(self, key: str, batch: FeatureBatch) -> None:
        tensors = {field.name: getattr(batch, field.name) for field in fields(batch)}
        tensors = {name: (t.bfloat16() if t.is_floating_point() else t).contiguous() for name, t in tensors.items()}
        beside = self.directory / f".{key}.partial"
        save_file(tensors, beside)
        beside.replace(self.directory / f"{key}.safetensors")
