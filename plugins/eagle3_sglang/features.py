"""What a drafter reads of Gemma 3: the whole state at each boundary.

SGLang (0.5.20 to 0.5.23) keeps Gemma 3's residual apart between layers and hands on the state without it, whose memory its
fused norm writes over on a GPU besides: a drafter's chain of 3 then yields little more than one token a pass. See
https://github.com/sgl-project/sglang/pull/39286.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from eagle3_serving.patches import Patches

DECODER = "Gemma3TextModel"


def decoder_of(target: Any) -> Any | None:
    """Gemma 3's decoder in a target, None where the target has none: alone, or beside a tower for images."""
    return next((module for module in target.modules() if type(module).__name__ == DECODER), None)


class WholeFeatures:
    """Stands around the decoder, its layers and its last norm. Boundary k is the input of layer k, the norm's the last."""

    def __init__(self, decoder: Any, patches: Patches) -> None:
        self._decoder = decoder
        self._kept: list[Tensor] = []
        for boundary, layer in enumerate(decoder.layers):
            patches.attribute(layer, "forward", self._at_layer(boundary, layer.forward))
        patches.attribute(decoder.norm, "forward", self._at_norm(len(decoder.layers), decoder.norm.forward))
        patches.attribute(decoder, "forward", self._whole(decoder.forward))

    def _keep(self, boundary: int, state_TH: Tensor, residual_TH: Tensor | None) -> None:
        # SGLang says which only after this was made
        if boundary in self._decoder.layers_to_capture:
            # a tensor of its own: what comes next writes into both
            self._kept.append(state_TH.clone() if residual_TH is None else state_TH + residual_TH)

    def _at_layer(self, boundary: int, layer: Callable[..., Any]) -> Callable[..., Any]:
        def forward(*args: Any, hidden_states: Tensor, residual: Tensor | None = None, **kwargs: Any) -> Any:
            self._keep(boundary, hidden_states, residual)
            return layer(*args, hidden_states=hidden_states, residual=residual, **kwargs)

        return forward

    def _at_norm(self, boundary: int, norm: Callable[..., Any]) -> Callable[..., Any]:
        def forward(state_TH: Tensor, residual_TH: Tensor | None = None) -> Any:
            self._keep(boundary, state_TH, residual_TH)
            return norm(state_TH, residual_TH)

        return forward

    def _whole(self, decoder: Callable[..., Any]) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            self._kept = []
            said = decoder(*args, **kwargs)
            return (said[0], self._kept) if isinstance(said, tuple) else said

        return forward
