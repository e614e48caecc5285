"""A calibration's numbers on the device, and its arithmetic inside a kernel.

Shape letters: D depths measured, R ranks measured.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from vllm.triton_utils import tl, triton

from eagle3_serving.tree.calibrate import Calibration


@dataclass(frozen=True)
class CalibrationTables:
    """`bias_D`, `slope_D`, `rank_R` fp32 of a `Calibration`; past the last entry the last holds."""

    bias_D: Tensor
    slope_D: Tensor
    rank_R: Tensor

    @classmethod
    def of(cls, calibration: Calibration, device: torch.device | str) -> "CalibrationTables":
        """Made once: it uploads."""
        tables = calibration.bias, calibration.slope, calibration.rank
        return cls(*(torch.tensor(table, dtype=torch.float32, device=device) for table in tables))


@triton.jit
def calibrated(log_p, rank, depth, bias_ptr, slope_ptr, rank_ptr, depths, ranks):  # type: ignore[no-untyped-def]
    """`Calibration.apply`: the log chance of a child of log probability `log_p` and `rank` (from 0) at `depth` (from 1)."""
    place = tl.minimum(depth, depths) - 1
    p = tl.minimum(tl.maximum(log_p, -30.0), -1e-6)
    logit = p - log1p(-tl.exp(p))
    shift = tl.load(rank_ptr + tl.minimum(rank, ranks - 1))
    z = tl.load(bias_ptr + place) + tl.load(slope_ptr + place) * logit + shift
    chance = tl.minimum(z, 0.0) - log1p(tl.exp(-tl.abs(z)))
    return tl.where(log_p == -float("inf"), log_p, chance)


@triton.jit
def log1p(x):  # type: ignore[no-untyped-def]
    """log(1 + x) without the loss that 1 + x has (Kahan's: the rounded sum's own error cancels)."""
    sum_ = 1.0 + x
    kept = sum_ - 1.0
    return tl.where(kept == 0, x, tl.log(sum_) * (x / tl.where(kept == 0, 1.0, kept)))
