"""Gemma 3's features as SGLang's decoder would hand them on, and whole. A decoder of the same calls stands in for SGLang's,
which runs in tests/engines/test_gemma3.py."""

from typing import Any

import pytest
import torch
from eagle3_sglang.features import WholeFeatures, decoder_of
from torch import Tensor, nn

from eagle3_serving.patches import Patches

LAYERS = 4


class Layer(nn.Module):
    def forward(
        self, positions: Tensor, hidden_states: Tensor, residual: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        residual = (
            hidden_states.clone() if residual is None else residual.add_(hidden_states)
        )  # in place, as when fused
        return torch.tanh(residual + positions), residual


class Norm(nn.Module):
    def forward(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        return x.add_(residual), x


class Gemma3TextModel(nn.Module):
    def __init__(self, watched: list[int]) -> None:
        super().__init__()
        self.layers, self.norm, self.layers_to_capture = nn.ModuleList(Layer() for _ in range(LAYERS)), Norm(), watched

    def forward(self, state: Tensor, positions: Tensor) -> Any:
        watched, residual = [], None
        for number, layer in enumerate(self.layers):
            if number in self.layers_to_capture:
                watched.append(state)
            state, residual = layer(positions=positions, hidden_states=state, residual=residual)
        if LAYERS in self.layers_to_capture:
            watched.append(state)
        state, _ = self.norm(state, residual)
        return (state, watched) if watched else state


@pytest.mark.parametrize("watched", [[1, 3], [0, 2, 4], [2], [4, 1]])
def test_each_boundary_is_the_whole_input_of_its_layer(watched: list[int]) -> None:
    start, positions = torch.randn(3, 8), torch.randn(3, 8)
    state, boundaries = start, []
    for _ in range(LAYERS + 1):
        boundaries.append(state)
        state = state + torch.tanh(state + positions)
    target = nn.ModuleDict({"tower": nn.Linear(2, 2), "model": Gemma3TextModel(watched)})
    decoder, patches = decoder_of(target), Patches()
    assert decoder is not None
    final, theirs = decoder(start.clone(), positions)
    WholeFeatures(decoder, patches)
    again, ours = decoder(start.clone(), positions)
    assert torch.equal(again, final) and torch.allclose(final, boundaries[LAYERS])
    wanted = [boundaries[boundary] for boundary in sorted(watched)]
    assert len(ours) == len(wanted) and all(map(torch.allclose, ours, wanted))
    patches.undo()
    assert all(map(torch.equal, decoder(start.clone(), positions)[1], theirs))
    assert not all(map(torch.allclose, theirs, wanted))


def test_other_targets_are_left_alone() -> None:
    assert decoder_of(nn.ModuleDict({"model": nn.Linear(2, 2)})) is None
