"""The one test of a law that the kit needs."""

import torch
from torch import Tensor


def chi_square(seen_V: Tensor, exact_V: Tensor) -> float:
    """How likely counts at least this far from `exact_V` (fp64, sums to 1) are; cells that expect fewer than 5 are pooled.

    A cell of probability 0 that was seen at all is 0.
    """
    if bool((seen_V[exact_V == 0] > 0).any()):
        return 0.0
    wanted_V = exact_V * seen_V.sum()
    rare_V = wanted_V < 5
    seen = torch.cat([seen_V[~rare_V].double(), seen_V[rare_V].sum().double()[None]])
    wanted = torch.cat([wanted_V[~rare_V], wanted_V[rare_V].sum()[None]])
    kept = wanted > 0
    chi2 = ((seen[kept] - wanted[kept]) ** 2 / wanted[kept]).sum()
    freedom = torch.tensor((int(kept.sum()) - 1) / 2, dtype=torch.float64)
    return float(torch.special.gammaincc(freedom, chi2 / 2))
