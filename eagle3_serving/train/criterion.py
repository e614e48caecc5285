"""Which losses a draft step is held to, and their weights; what they compute stands in `objectives`."""

from dataclasses import dataclass
from typing import Literal, get_args

from eagle3_serving.errors import InputError

Objective = Literal["cross-entropy", "total-variation", "acceptance"]
OBJECTIVES: tuple[Objective, ...] = get_args(Objective)


@dataclass(frozen=True)
class Criterion:
    """`token_weight` x the objective + `feature_weight` x EAGLE-1/2's regression (arXiv 2401.15077, section 4.2)."""

    objective: Objective = "cross-entropy"
    token_weight: float = 1.0
    feature_weight: float = 0.0

    def __post_init__(self) -> None:
        """Raises InputError naming the value that is out of range."""
        if self.objective not in OBJECTIVES:
            raise InputError(f"--objective {self.objective} is not known: use {', '.join(OBJECTIVES)}")
        if min(self.token_weight, self.feature_weight) < 0 or self.token_weight + self.feature_weight == 0:
            raise InputError("--token-weight and --feature-weight must not be negative, nor both 0")
