"""The layers a drafter is made of, behind a factory, so that an engine can lend its own."""

from typing import Protocol

import torch
from torch import Tensor, nn

from eagle3_serving.drafter.config import DrafterConfig


class Attend(Protocol):
    """The caller's attention: it owns the KV cache and the mask.

    Shapes: q [B, L, A, D], k and v [B, L, K, D] (A query heads, K key-value heads, not expanded), q and k after
    rotary embedding; returns [B, L, A, D]. `layer` counts the drafter's own layers from 0.
    """

    def __call__(self, layer: int, q_BLAD: Tensor, k_BLKD: Tensor, v_BLKD: Tensor, /) -> Tensor: ...


class RMSNorm(nn.Module):
    """Root-mean-square norm, computed in fp32 and returned in the input's dtype."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.rms_norm(x.float(), self.weight.shape, self.weight.float(), self.eps).to(x.dtype)


def weight_of(module: nn.Module) -> Tensor:
    """The weight of a linear or norm layer, whoever lent it."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight


class LayerFactory:
    """Makes the drafter's layers; an engine subclasses it to lend parallel, quantised or fused ones.

    `name` is the layer's path inside the drafter (`layers.0.self_attn.q_proj`), which engines need for their weights.
    """

    def linear(self, name: str, in_features: int, out_features: int, bias: bool) -> nn.Module:
        """Of a projection; [..., in_features] to [..., out_features]."""
        return nn.Linear(in_features, out_features, bias=bias)

    def norm(self, name: str, size: int, eps: float) -> nn.Module:
        """Root mean square norm over the last dimension."""
        return RMSNorm(size, eps)

    def embedding(self, name: str, rows: int, width: int) -> nn.Module:
        """Of token ids: int64 [...] to [..., width]."""
        return nn.Embedding(rows, width)

    def rotary(self, config: DrafterConfig) -> nn.Module:
        """The rotary embedding that `config` describes."""
        from eagle3_serving.drafter.rope import RotaryEmbedding

        return RotaryEmbedding(config)
