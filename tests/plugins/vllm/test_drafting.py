"""Who draws which tree: kernels where they can count it, else PyTorch's own operations, which can do any."""

import logging
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("vllm")

from eagle3_vllm import drafting
from eagle3_vllm.drafting import TreeDrafter

from eagle3_serving.serve.shape import Shape


@pytest.mark.parametrize("vocabulary, by_kernels", [(32_000, 1), ((1 << 20) + 1, 0)])
def test_what_kernels_cannot_count_is_drawn_without(
    monkeypatch: pytest.MonkeyPatch, caplog: Any, vocabulary: int, by_kernels: int
) -> None:
    usual, wide = Shape(2, 4, 9), Shape(2, 46, 60)
    model: Any = SimpleNamespace(
        model=SimpleNamespace(config=SimpleNamespace(draft_vocab_size=vocabulary)), whole_vocabulary=True
    )
    trees: Any = SimpleNamespace(
        by_kernels=True, device=torch.device("cpu"), shapes={9: usual, 60: wide}, parents_SK=torch.zeros(3, 59)
    )
    monkeypatch.setattr(drafting.logger, "propagate", True)
    drawn: list[str] = []
    monkeypatch.setattr(TreeDrafter, "_by_core", lambda *_: drawn.append("core"))
    monkeypatch.setattr(TreeDrafter, "_by_kernels", lambda *_: drawn.append("kernels"))
    with caplog.at_level(logging.WARNING):
        drafter = TreeDrafter(model, trees, None)
    for shape in (usual, wide):
        drafter.draw(shape, None, None)  # type: ignore[arg-type]
    assert drawn == [*(["kernels"] * by_kernels), *(["core"] * (2 - by_kernels))]
    assert len(caplog.messages) == 2 - by_kernels and all("at most 45" in line for line in caplog.messages)
