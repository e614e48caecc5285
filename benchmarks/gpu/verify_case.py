"""Inputs of one verify pass's attention, which every way of computing it is given.

Shape letters: B requests, R rows (root first), S keys, K key-value heads, D head size.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.gpu.settings import Settings
from benchmarks.gpu.shapes import random_parents
from eagle3_serving.tree import TreeLayout, dense_mask, tree_layout, with_root

HEADS, KV_HEADS, HEAD_DIM = 32, 8, 128


@dataclass(frozen=True)
class Case:
    """One verify pass: keys and values [B, S, K, D] of prefix and rows together."""

    q_BRAD: Tensor
    k_BSKD: Tensor
    v_BSKD: Tensor
    layout: TreeLayout
    prefix: int

    @property
    def mask_BRS(self) -> Tensor:
        batch = len(self.q_BRAD)
        committed_B = torch.full((batch,), self.prefix, device=self.q_BRAD.device)
        return dense_mask(self.layout, committed_B, self.k_BSKD.shape[1])

    @classmethod
    def make(cls, settings: Settings, batch: int, nodes: int, prefix: int, dtype: torch.dtype, seed: int) -> "Case":
        device = settings.torch_device
        generator = torch.Generator(device).manual_seed(seed)
        heads, kv_heads, size = (8, 2, 16) if settings.tiny else (HEADS, KV_HEADS, HEAD_DIM)
        shape = (batch, prefix + nodes + 1, kv_heads, size)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, device=device, dtype=dtype)

        layout = tree_layout(with_root(random_parents(batch, nodes, seed).to(device)), min(nodes, 10))
        return cls(normal(batch, nodes + 1, heads, size), normal(*shape), normal(*shape), layout, prefix)


Way = Callable[[Case], Callable[[], Tensor]]
