"""Which positions a target's layers see: all, a sliding window of them, or their own chunk.

Shape letters: B requests, R rows of the widest request, S cache places.
"""

from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from eagle3_serving.errors import InputError

_KINDS = ("full_attention", "sliding_attention", "chunked_attention")


@dataclass(frozen=True)
class Reach:
    """Of the positions up to its own a row sees the last `size`, its own among them (`window`), or those of its own `chunk` of
    `size`, counted from 0 (Llama 4)."""

    kind: Literal["window", "chunk"]
    size: int

    def sees(self, query_BR: Tensor, key_BS: Tensor) -> Tensor:
        """bool [B, R, S] from positions; what comes after a row is not asked here."""
        nearest_BR = query_BR - self.size + 1 if self.kind == "window" else query_BR - query_BR % self.size
        return key_BS[:, None] >= nearest_BR[..., None]


def reaches(config: Any, name: str) -> list[Reach | None]:
    """Of each layer, by the kinds in a transformers config; None: everything, or what the layer itself says (Mistral's one window
    for all). Raises InputError for layers that hold no keys."""
    kinds = getattr(config, "layer_types", None) or ["full_attention"] * int(config.num_hidden_layers)
    if unknown := sorted(set(kinds) - set(_KINDS)):
        raise InputError(
            f"{name}: layers of kind {', '.join(unknown)} are not supported by the embedded engine: what they keep of a text "
            "cannot be taken back where a draft is rejected"
        )
    sizes: dict[str, Reach] = {}
    if window := getattr(config, "sliding_window", None):
        sizes["sliding_attention"] = Reach("window", int(window))
    if chunk := getattr(config, "attention_chunk_size", None):
        sizes["chunked_attention"] = Reach("chunk", int(chunk))
    return [sizes.get(kind) for kind in kinds]
