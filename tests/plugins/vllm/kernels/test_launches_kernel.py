"""What a call costs the host: so many launches as it says, no tensor made and none read."""

from typing import Any

import pytest
import torch
from batches import DEVICE
from eagle3_vllm.kernels.select import _select_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.tree_kernels import Case, Shape, cases

VIEWS = {"view", "slice", "select", "detach", "alias"}


class OnlyViews(TorchDispatchMode):
    """Raises at any operation that is not a view: it would be a launch, an allocation or a read."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func.overloadpacket.__name__ in VIEWS, f"{func} on the host's way"
        return func(*args, **(kwargs or {}))


def test_a_call_is_its_launches_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    shape = Shape(2, nodes=5, depth=3, top_k=4, vocab=97, layers=2, kv_heads=1, head_dim=8, dtype=torch.float32)
    made = cases(DEVICE, shape)
    assert {case.name.split(",")[0].split(" ")[0] for case in made} == {
        "begin",
        "accept",
        "moves",
        "absorb",
        "expand",
        "select",
    }
    launched: list[str] = []
    kinds = type(_select_kernel)
    monkeypatch.setattr(kinds, "run", lambda self, *args, **kwargs: launched.append(self.fn.__name__))
    for case in made:
        launched.clear()
        with OnlyViews():
            case.call()
        assert len(launched) == case.launches, case.name


def test_the_rule_sees_what_is_made_and_what_is_read() -> None:
    x = torch.ones(3)
    for call in (lambda: x + 1, lambda: x.sum().item(), lambda: torch.zeros(2)):
        with pytest.raises(AssertionError, match="on the host's way"), OnlyViews():
            Case("broken", 1, call).call()
