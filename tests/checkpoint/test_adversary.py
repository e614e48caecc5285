"""A sample of the adversary's kit: converted to every dialect, loaded by hand as each engine does, and computed a second time."""

from pathlib import Path

import adversary
import drafters
import pytest
import torch
from drafters import known
from reference import Rules, logits


@pytest.mark.parametrize("seed", range(20))
def test_every_conversion_computes_what_was_meant(seed: int, tmp_path: Path) -> None:
    assert not adversary.faults(seed, tmp_path)


@pytest.mark.parametrize(
    "change",
    [{"aux": (1, 6, 9)}, {"norm_output": True}, {"norm_before_residual": True}, {"eps": 0.01}, {"window": 2},
     {"rope": {"theta": 10000.0}}, {"rope": {"theta": 5000.0, "partial": 0.5}}, {"ids": drafters.IDS.flip(0)}],
)  # fmt: skip
def test_the_reference_sees_every_rule(change: dict[str, object]) -> None:
    drafter = known(own_embedding=True)
    made = adversary.draw(0)._replace(drafter=drafter)
    weights, rules = adversary.meaning(made)
    one, other = logits(weights, rules, 32), logits(weights, Rules(**{**rules._asdict(), **change}), 32)
    assert not torch.allclose(one, other, atol=1e-3)
