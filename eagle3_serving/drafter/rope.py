"""Rotary position embedding in Hugging Face's half-split layout, theta and scaling honoured."""

import math

import torch
from torch import Tensor, nn

from eagle3_serving.drafter.config import DrafterConfig, RopeConfig
from eagle3_serving.errors import InputError


def rotated_dimensions(rope: RopeConfig, head_dim: int) -> int:
    """How many dimensions of a head are rotated: all of them, or its first part (Hugging Face `partial_rotary_factor`)."""
    return int(head_dim * rope.partial)


def inverse_frequencies(rope: RopeConfig, head_dim: int) -> Tensor:
    """Inverse frequencies [head_dim / 2] of the rotated part of a head, fp32, after scaling. Raises InputError on a type that
    is not known."""
    inv_freq = rope.theta ** -(torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    if rope.type in ("default", "dynamic"):  # dynamic NTK changes nothing inside the trained length
        return inv_freq
    factor = float(rope.params["factor"])
    if rope.type == "linear":
        return inv_freq / factor
    if rope.type == "llama3":
        return _llama3(inv_freq, factor, rope)
    if rope.type == "yarn":
        return _yarn(inv_freq, factor, rope, head_dim)
    raise InputError(f"rope type {rope.type!r} is not supported; known are default, linear, dynamic, llama3, yarn")


def attention_scale(rope: RopeConfig) -> float:
    """What sines and cosines are multiplied by: 1 but for YaRN (arXiv 2309.00071, section 3.4)."""
    if rope.type != "yarn":
        return 1.0
    if (given := rope.params.get("attention_factor")) is not None:
        return float(given)
    factor = float(rope.params["factor"])
    all_dims, own = rope.params.get("mscale_all_dim"), rope.params.get("mscale")
    if own and all_dims:
        return _yarn_magnitude(factor, float(own)) / _yarn_magnitude(factor, float(all_dims))
    return _yarn_magnitude(factor, 1.0)


def _yarn_magnitude(factor: float, weight: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0


def _yarn(inv_freq: Tensor, factor: float, rope: RopeConfig, head_dim: int) -> Tensor:
    """YaRN (arXiv 2309.00071, section 3.2): long wavelengths are stretched, short ones kept, a linear ramp between."""
    original = float(rope.params.get("original_max_position_embeddings") or 2048)

    def dimension(rotations: float) -> float:
        return head_dim * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(rope.theta))

    low = dimension(float(rope.params.get("beta_fast") or 32))
    high = dimension(float(rope.params.get("beta_slow") or 1))
    if rope.params.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    ramp = ((torch.arange(head_dim // 2, dtype=torch.float32) - low) / max(high - low, 0.001)).clamp(0, 1)
    return inv_freq / factor * ramp + inv_freq * (1 - ramp)


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
        self.rotated = rotated_dimensions(config.rope, config.head_dim)
        self.register_buffer("inv_freq", inverse_frequencies(config.rope, self.rotated), persistent=False)
        self.scale = attention_scale(config.rope)

    def forward(self, positions_BL: Tensor, q_BLAD: Tensor, k_BLKD: Tensor) -> tuple[Tensor, Tensor]:
        angles_BLD = positions_BL[..., None].float() * self.inv_freq.float()
        angles_BLD = torch.cat([angles_BLD, angles_BLD], dim=-1)[..., None, :]
        cos, sin = angles_BLD.cos() * self.scale, angles_BLD.sin() * self.scale
        return self._turn(q_BLAD, cos, sin), self._turn(k_BLKD, cos, sin)

    def _turn(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        if self.rotated == x.shape[-1]:
            return _rotate(x, cos, sin)
        return torch.cat([_rotate(x[..., : self.rotated], cos, sin), x[..., self.rotated :]], dim=-1)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.float().chunk(2, dim=-1)
    return (x.float() * cos + torch.cat([-second, first], dim=-1) * sin).to(x.dtype)
