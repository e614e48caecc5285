"""Feature fusion: the target's low, middle and high hidden states become one state (paper, section 3.1)."""

import torch
from torch import Tensor, nn

from eagle3_serving.drafter.config import DrafterConfig
from eagle3_serving.drafter.layers import LayerFactory


class FeatureFusion(nn.Module):
    """g = fc(concat of A auxiliary features), with an optional norm before `fc`."""

    def __init__(self, config: DrafterConfig, factory: LayerFactory) -> None:
        super().__init__()
        width = config.num_aux * config.target_hidden_size
        self.num_aux = config.num_aux
        self.concatenation, self.features = config.norms_concatenation, config.norms_features
        if self.concatenation:
            self.input_norm = factory.norm("input_norm", width, config.rms_norm_eps)
        if self.features:
            self.fc_norm = nn.ModuleList(
                factory.norm(f"fc_norm.{i}", config.target_hidden_size, config.rms_norm_eps)
                for i in range(self.num_aux)
            )
        self.fc = factory.linear("fc", width, config.hidden_size, config.fc_bias)

    def forward(self, aux_BLF: Tensor) -> Tensor:
        """[B, L, A * Ht] -> [B, L, H]."""
        fused: Tensor = self.fc(self.normalise(aux_BLF))
        return fused

    def normalise(self, aux_BLF: Tensor) -> Tensor:
        """What `fc` reads [..., A * Ht]: the features as they are, or after their norms."""
        if self.concatenation:
            aux_BLF = self.input_norm(aux_BLF)
        if self.features:
            parts = aux_BLF.chunk(self.num_aux, dim=-1)
            aux_BLF = torch.cat([norm(part) for norm, part in zip(self.fc_norm, parts, strict=True)], dim=-1)
        return aux_BLF
