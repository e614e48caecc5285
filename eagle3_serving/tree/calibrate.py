"""From the draft's confidence to the measured chance of acceptance, so that trees are ranked by what they will yield.

What a CUDA graph captures may copy nothing from the host: tables are placed on a device once, before (`Calibration.place`).

Shape letters: B requests, K nodes, C children of a node, L tokens of a lookup branch, N tokens that a lookup was found by,
X any shape, P features.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from eagle3_serving.tree.expand import Children
from eagle3_serving.tree.lookup import Lookup

FILE = "calibration.json"
RANK_DECAY = 0.4  # of a drawn child's chance to its next sibling's, where only the rank may count
LOOKUP_PRIOR = ((0.2, 0.5), (0.4, 0.7), (0.6, 0.8))  # before anything was measured: one match says little, three much


@dataclass(frozen=True)
class Calibration:
    """logit(chance) = bias[depth] + slope[depth] * logit(p) + rank[r], for the child of rank r (0 first) with draft
    probability p, given that its parent was accepted (Platt scaling, one line a depth). Past the last entry the last
    holds. `lookup_chance[n - 1][d - 1]`: the chance of the d-th token of a lookup branch found by n tokens, given those
    before it.
    """

    bias: tuple[float, ...]
    slope: tuple[float, ...]
    rank: tuple[float, ...]
    lookup_chance: tuple[tuple[float, ...], ...] = ()
    rows: int = 0  # measured rows behind the fit

    @classmethod
    def beside(cls, drafter: Path) -> "Calibration | None":
        """The one saved beside a drafter, None where there is none. Raises ValueError where the file is damaged."""
        path = drafter / FILE
        return cls.read(path) if path.is_file() else None

    @classmethod
    def read(cls, path: Path) -> "Calibration":
        """Raises ValueError naming the file where it is not a calibration."""
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
            made = cls(
                bias=_floats(raw["bias"]),
                slope=_floats(raw["slope"]),
                rank=_floats(raw["rank"]),
                lookup_chance=tuple(_floats(row) for row in raw["lookup_chance"]),
                rows=int(raw["rows"]),
            )
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise ValueError(f"{path} is not a calibration ({error}): make it again with eagle3 calibrate") from None
        if not made.bias or len(made.bias) != len(made.slope) or not made.rank or min(made.slope) <= 0:
            raise ValueError(f"{path} is not a calibration (empty, or a slope that is not positive)")
        return made

    def save(self, path: Path) -> None:
        beside = path.with_name(f".{path.name}.partial")
        beside.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")
        beside.replace(path)

    def place(self, device: torch.device | str, children: int) -> None:
        """Before a capture: after it, `apply` to nodes of so many children copies nothing to this device."""
        # "cuda" is the device that tensors made there name, "cuda:0"
        _table((self.rank,), children, torch.empty(0, device=device).device)

    def apply(self, children: Children, depth: int) -> Children:
        """The same children with their calibrated chances; depth counts from 1."""
        place = min(depth, len(self.bias)) - 1
        log_p_BKC = children.log_chance_BKC
        rank_C = _table((self.rank,), log_p_BKC.shape[-1], log_p_BKC.device)[0]
        log_chance_BKC = torch.nn.functional.logsigmoid(
            self.bias[place] + self.slope[place] * logit(log_p_BKC) + rank_C
        )
        # a child without a probability stays without a chance
        return Children(children.tokens_BKC, torch.where(log_p_BKC == -torch.inf, log_p_BKC, log_chance_BKC))

    def lookup(self, found: Lookup) -> Tensor:
        """Log chances [B, L] of a lookup branch's tokens."""
        return _lookup_log(found, self.lookup_chance) if self.lookup_chance else lookup_prior(found)


def logit(log_p_X: Tensor) -> Tensor:
    """log(p / (1 - p)) of log p, finite at both ends."""
    log_p_X = log_p_X.clamp(min=-30.0, max=-1e-6)
    return log_p_X - torch.log1p(-log_p_X.exp())


def lookup_prior(found: Lookup) -> Tensor:
    """Log chances [B, L] of a lookup branch before anything was measured."""
    return _lookup_log(found, LOOKUP_PRIOR)


def _lookup_log(found: Lookup, chance: tuple[tuple[float, ...], ...]) -> Tensor:
    log_chance = tuple(tuple(math.log(min(max(p, 1e-6), 1.0)) for p in row) for row in chance)
    table_NL = _table(log_chance, found.tokens_BL.shape[1], found.tokens_BL.device)
    return table_NL[(found.match_B - 1).clamp(0, len(chance) - 1)]


def by_rank(tokens_BKC: Tensor) -> Children:
    """Children whose chance is a function of their rank alone: 0.6, 0.24, 0.096, ..."""
    rank_C = torch.arange(tokens_BKC.shape[-1], device=tokens_BKC.device)
    log_chance_C = math.log1p(-RANK_DECAY) + rank_C * math.log(RANK_DECAY)
    return Children(tokens_BKC, log_chance_C.expand(tokens_BKC.shape))


@cache  # without bound: a captured graph reads the very tensor that its capture was given
def _table(rows: tuple[tuple[float, ...], ...], length: int, device: torch.device) -> Tensor:
    """fp32 [rows, length] on the device; past a row's last value the last holds."""
    return torch.tensor([[*row, *[row[-1]] * length][:length] for row in rows], device=device)


def _floats(values: Sequence[float]) -> tuple[float, ...]:
    floats = tuple(float(value) for value in values)
    if not all(-1e6 < value < 1e6 for value in floats):
        raise ValueError("a value is not finite")
    return floats


def fit(
    log_p_X: Tensor, depth_X: Tensor, rank_X: Tensor, label_X: Tensor, depths: int, ranks: int
) -> tuple[tuple[float, ...], tuple[float, ...], tuple[float, ...]]:
    """bias, slope and rank terms by logistic regression; labels are acceptances (0 or 1) or chances between.

    `depth_X` counts from 1, `rank_X` from 0; the first rank's term is 0. A weak pull keeps rare depths near the others.
    """
    feature_X = logit(log_p_X).double()
    depth_X, rank_X = depth_X.clamp(max=depths) - 1, rank_X.clamp(max=ranks - 1)
    parameters = [torch.zeros(n, dtype=torch.float64, requires_grad=True) for n in (depths, depths, ranks)]
    shift, stretch, rank = parameters
    common = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [*parameters, common], max_iter=300, line_search_fn="strong_wolfe", tolerance_grad=1e-10
    )
    pull = 20.0 / max(1, label_X.numel())
    first_free = torch.ones(ranks, dtype=torch.float64)
    first_free[0] = 0.0

    def score() -> Tensor:
        slope_X = torch.nn.functional.softplus(common[1] + stretch)[depth_X]
        return common[0] + shift[depth_X] + slope_X * feature_X + (rank * first_free)[rank_X]

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = torch.nn.functional.binary_cross_entropy_with_logits(score(), label_X.double())
        loss = loss + pull * sum(((p * p).sum() for p in parameters), torch.zeros(()))
        loss.backward()
        return loss

    optimizer.step(closure)
    with torch.no_grad():
        bias = (common[0] + shift).tolist()
        slope = torch.nn.functional.softplus(common[1] + stretch).clamp(min=1e-3).tolist()
        ranked = (rank * first_free).tolist()
    return tuple(bias), tuple(slope), tuple(ranked)
