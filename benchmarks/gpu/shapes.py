"""Targets and drafters of a real model's shape with random weights, made on the device; toy ones beside them."""

import random
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from eagle3_serving.checkpoint.aux_layers import default_aux_layers
from eagle3_serving.drafter import Drafter, DrafterConfig, RopeConfig
from eagle3_serving.engine import Target


@dataclass(frozen=True)
class Shape:
    """What decides the cost of a pass."""

    name: str
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    vocab: int
    draft_vocab: int
    positions: int = 16384

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads

    def weights(self, bytes_each: int) -> int:
        """Bytes that one pass of the target must read: all layers and the head."""
        attention = 2 * self.hidden * self.hidden + 2 * self.hidden * self.kv_heads * self.head_dim
        return bytes_each * (self.layers * (attention + 3 * self.hidden * self.intermediate) + self.vocab * self.hidden)


# Llama-3.1-8B and its published drafter
LLAMA_8B = Shape("Llama-3.1-8B", 4096, 14336, 32, 32, 8, 128256, 32000)
# wide enough a vocabulary that a random draft is nearly never right by itself
TINY = Shape("tiny", 64, 128, 8, 8, 2, 512, 128, 2048)


def llama_config(shape: Shape) -> Any:
    """A `transformers.LlamaConfig`; no token ends a text."""
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=shape.vocab,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=shape.positions,
        initializer_range=0.02,
        eos_token_id=None,
        bos_token_id=None,
        pad_token_id=None,
    )


def random_target(shape: Shape, device: torch.device, dtype: torch.dtype) -> Target:
    from transformers import LlamaForCausalLM

    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model: Any = LlamaForCausalLM(llama_config(shape))
    finally:
        torch.set_default_dtype(before)
    return Target(model.to(device=device, dtype=dtype).requires_grad_(False), shape.name)


def random_drafter(shape: Shape, device: torch.device, dtype: torch.dtype, first_id: int = 0) -> Drafter:
    """Its draft vocabulary is the target's ids from `first_id`: the others are free to stand for what is never drafted."""
    config = DrafterConfig(
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        vocab_size=shape.vocab,
        draft_vocab_size=shape.draft_vocab,
        target_hidden_size=shape.hidden,
        aux_layers=default_aux_layers(shape.layers),
        max_position_embeddings=shape.positions,
        rope=RopeConfig(theta=500000.0),
    )
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            drafter = Drafter(config, torch.arange(first_id, first_id + shape.draft_vocab))
    finally:
        torch.set_default_dtype(before)
    with torch.no_grad():
        for parameter in drafter.parameters():
            if parameter.dim() == 2:
                parameter.normal_(std=0.02)
    return drafter.to(device=device, dtype=dtype).eval().requires_grad_(False)


def random_parents(batch: int, nodes: int, seed: int, depth: int = 10) -> Tensor:
    """Node parents [B, N] int64 of random trees, parents before children, none deeper than `depth`."""
    rng = random.Random(seed)
    rows = []
    for _ in range(batch):
        parents: list[int] = []
        depths: list[int] = []
        for node in range(nodes):
            open_nodes = [n for n in range(node) if depths[n] + 1 < depth]
            parent = rng.choice([-1, *open_nodes])
            parents.append(parent)
            depths.append(0 if parent < 0 else depths[parent] + 1)
        rows.append(parents)
    return torch.tensor(rows)
