"""Rotary position embedding in Hugging Face's half-split layout, theta and scaling honoured."""

import math

import torch
from torch import Tensor, nn

from eagle3_serving.drafter.config import DrafterConfig, RopeConfig
from eagle3_serving.errors import InputError


def inverse_frequencies(rope: RopeConfig, head_dim: int) -> Tensor:
    """Inverse frequencies [head_dim / 2], fp32, after scaling. Raises InputError on a type that is not known."""
    inv_freq = rope.theta ** -(torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    if rope.type in ("default", "dynamic"):  # dynamic NTK changes nothing inside the trained length
        return inv_freq
    factor = float(rope.params["factor"])
    if rope.type == "linear":
        return inv_freq / factor
    if rope.type == "llama3":
        return _llama3(inv_freq, factor, rope)
    raise InputError(f"rope type {rope.type!r} is not supported; known are default, linear, dynamic, llama3")


def _llama3(inv_freq: Tensor, factor: float, rope: RopeConfig) -> Tensor:
    """Llama 3.1's scaling: long wavelengths are stretched, short ones kept, those between interpolated."""
    low = float(rope.params["low_freq_factor"])
    high = float(rope.params["high_freq_factor"])
    original = float(rope.params["original_max_position_embeddings"])
    wavelength = 2 * math.pi / inv_freq
    smooth = ((original / wavelength - low) / (high - low)).clamp(0, 1)
    return inv_freq * (smooth + (1 - smooth) / factor)


class RotaryEmbedding(nn.Module):
    """Rotates queries and keys by their positions."""

    def __init__(self, config: DrafterConfig) -> None:
        super().__init__()
        self.inv_freq: Tensor
        self.register_buffer("inv_freq", inverse_frequencies(config.rope, config.head_dim), persistent=False)

    def forward(self, positions_BL: Tensor, q_BLAD: Tensor, k_BLKD: Tensor) -> tuple[Tensor, Tensor]:
        angles_BLD = positions_BL[..., None].float() * self.inv_freq.float()
        angles_BLD = torch.cat([angles_BLD, angles_BLD], dim=-1)[..., None, :]
        cos, sin = angles_BLD.cos(), angles_BLD.sin()
        return _rotate(q_BLAD, cos, sin), _rotate(k_BLKD, cos, sin)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.float().chunk(2, dim=-1)
    return (x.float() * cos + torch.cat([-second, first], dim=-1) * sin).to(x.dtype)
