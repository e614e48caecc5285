"""The proof: one drafter under two sets of rules, run on the same inputs in fp32, step by step.

Weights are streamed: a layer reads its rows when it runs and forgets them, so that the proof of a large drafter needs
no more memory than its conversion.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eagle3_serving.checkpoint.dequantize import dense_rows
from eagle3_serving.checkpoint.facts import TargetFacts
from eagle3_serving.checkpoint.neutral import Meaning
from eagle3_serving.checkpoint.source import StoredTensor
from eagle3_serving.drafter.layers import LayerFactory, RMSNorm
from eagle3_serving.drafter.model import Drafter

STEPS = 4
_ROWS, _FIRST_POSITION = 6, 37  # true rows before the chain, and where they stand: an offset shows a wrong rope
_CHUNK = 1 << 24  # bytes of fp32 weights at a time


@dataclass(frozen=True)
class Parity:
    """`tokens_equal`: every mapped token id, of every row and step; `max_difference`: of logits, both sides in fp32."""

    engine: str
    steps: int
    tokens_equal: bool
    max_difference: float
    largest_logit: float


class Trace(NamedTuple):
    """`token_ids` [rows + steps] target ids; `logits_SV` in the order of target ids."""

    token_ids: Tensor
    logits_SV: Tensor


def compare(engine: str, source: Meaning, output: Meaning, facts: TargetFacts) -> Parity:
    """Run both, each under its own reading, and compare. Where one side has an embedding of its own and the other takes the
    target's, both are run with the target's, or with the copy where no target is at hand: whether they are equal is another
    question."""
    shared = None
    if source.config.own_embedding != output.config.own_embedding:
        name = "embed_tokens.weight"
        shared = facts.embedding or source.tensors.get(name) or output.tensors.get(name)
    window = source.config.sliding_window  # an engine that looks back further is the check's to name
    one, other = trace(source, facts, window, shared), trace(output, facts, window, shared)
    if one.logits_SV.shape != other.logits_SV.shape:
        return Parity(engine, STEPS, False, float("inf"), float(one.logits_SV.abs().max()))
    difference = (one.logits_SV - other.logits_SV).abs().max()
    largest = float(one.logits_SV.abs().max())
    return Parity(engine, STEPS, torch.equal(one.token_ids, other.token_ids), float(difference), largest)


@torch.inference_mode()
def trace(
    meaning: Meaning, facts: TargetFacts, window: int | None = None, embedding: StoredTensor | None = None
) -> Trace:
    """Draft `STEPS` tokens after `_ROWS` rows of made-up features. A feature depends on its boundary, not on its place.

    A row looks back on `window` rows (None: all). `embedding` [Vt, H] stands in for that of `meaning`; a head that is tied to it is not touched.
    """
    config = meaning.config
    drafter = Drafter(config, meaning.target_ids, _Streamed(meaning, facts, embedding))
    attend = _Attention(window)
    rows = torch.arange(_ROWS)
    tokens_L = (rows * 7919 + 11) % config.vocab_size
    features = [
        _noise(rows + 1000 * (k if k >= 0 else 500 + i), config.target_hidden_size)
        for i, k in enumerate(config.aux_layers)
    ]
    hidden_BLH = drafter.fuse(torch.cat(features, dim=-1)[None])
    mask_hidden = meaning.mask_hidden
    if mask_hidden is not None:  # a parallel drafter's own stand-in for features that are not there yet
        masked_BLH = drafter.fuse(mask_hidden.read().float().reshape(1, 1, -1))
        hidden_BLH = torch.cat([hidden_BLH[:, :-1], masked_BLH], dim=1)
    positions_L = rows + _FIRST_POSITION
    order = drafter.vocabulary.target_ids.argsort()
    said, logits = [], []
    for n in range(STEPS):
        step = drafter.step(tokens_L[None], hidden_BLH, positions_L[None], attend)
        state_BLH = drafter.follow(tokens_L[None], hidden_BLH, step.hidden_BLH) if n else step.hidden_BLH
        logits_LV = drafter.logits(state_BLH)[0]
        drafted_L = drafter.vocabulary.to_target(logits_LV.argmax(-1))
        said.append(drafted_L)
        logits.append(logits_LV[:, order])
        tokens_L, hidden_BLH = drafted_L[-1:], step.feedback_BLH[:, -1:]
        positions_L = positions_L[-1:] + 1
    return Trace(torch.cat(said), torch.cat(logits))


class _Attention:
    """Causal attention over all rows so far, or those of the window."""

    def __init__(self, window: int | None) -> None:
        self.window = window
        self.seen: dict[int, tuple[Tensor, Tensor]] = {}

    def __call__(self, layer: int, q_BLAD: Tensor, k_BLKD: Tensor, v_BLKD: Tensor, /) -> Tensor:
        if layer in self.seen:
            k_BLKD = torch.cat([self.seen[layer][0], k_BLKD], dim=1)
            v_BLKD = torch.cat([self.seen[layer][1], v_BLKD], dim=1)
        self.seen[layer] = (k_BLKD, v_BLKD)
        rows, total = q_BLAD.shape[1], k_BLKD.shape[1]
        mask = torch.ones(rows, total, dtype=torch.bool).tril(total - rows)
        if self.window is not None:
            mask &= mask.new_ones(rows, total).triu(total - rows - self.window + 1)
        q, k, v = (x.transpose(1, 2) for x in (q_BLAD, k_BLKD, v_BLKD))
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True).transpose(1, 2)


class _Streamed(LayerFactory):
    """Layers that read their weights where they stand; what is the target's and not at hand is made up, for both sides."""

    def __init__(self, meaning: Meaning, facts: TargetFacts, shared: StoredTensor | None) -> None:
        self.meaning, self.facts, self.shared = meaning, facts, shared

    def linear(self, name: str, in_features: int, out_features: int, bias: bool) -> nn.Module:
        canonical = f"fusion.{name}" if name == "fc" else name
        if name != "lm_head" or self.meaning.head == "own":
            return _Linear(self.meaning, canonical, out_features, bias)
        if self.meaning.head == "tied":
            if self.meaning.config.own_embedding:
                return _Linear(self.meaning, "embed_tokens", out_features, False)
            return _TargetLinear(self.facts.embedding, out_features, 0)
        return _TargetLinear(self.facts.head, out_features, 1)

    def norm(self, name: str, size: int, eps: float) -> nn.Module:
        norm = RMSNorm(size, eps)
        canonical = f"fusion.{name}.weight" if name.startswith(("input_norm", "fc_norm")) else f"{name}.weight"
        norm.weight.data.copy_(dense_rows(self.meaning, canonical, 0, size))
        return norm

    def embedding(self, name: str, rows: int, width: int) -> nn.Module:
        own = self.meaning.config.own_embedding
        if self.shared is not None:
            return _Embedding(self.shared, width)
        return _Embedding(self.meaning.tensors["embed_tokens.weight"] if own else self.facts.embedding, width)


class _Linear(nn.Module):
    def __init__(self, meaning: Meaning, name: str, rows: int, bias: bool) -> None:
        super().__init__()
        self.meaning, self.name, self.rows, self.bias = meaning, name, rows, bias

    def forward(self, x: Tensor) -> Tensor:
        step = max(1, _CHUNK // (4 * x.shape[-1]))
        weight = f"{self.name}.weight"
        parts = [
            F.linear(x, dense_rows(self.meaning, weight, a, min(a + step, self.rows)).float())
            for a in range(0, self.rows, step)
        ]
        out = torch.cat(parts, dim=-1)
        return out + dense_rows(self.meaning, f"{self.name}.bias", 0, self.rows).float() if self.bias else out


class _TargetLinear(nn.Module):
    def __init__(self, stored: StoredTensor | None, rows: int, seed: int) -> None:
        super().__init__()
        self.stored, self.rows, self.seed = stored, rows, seed

    def forward(self, x: Tensor) -> Tensor:
        width = x.shape[-1]
        step = max(1, _CHUNK // (4 * width))
        parts = []
        for a in range(0, self.rows, step):
            b = min(a + step, self.rows)
            made = self.stored is None or self.stored.shape != (self.rows, width)
            weight = _noise(torch.arange(a, b) + 10**7 * self.seed, width) if made else _read(self.stored, range(a, b))
            parts.append(F.linear(x, weight))
        return torch.cat(parts, dim=-1)


class _Embedding(nn.Module):
    def __init__(self, stored: StoredTensor | None, width: int) -> None:
        super().__init__()
        self.stored, self.width = stored, width

    def forward(self, token_ids: Tensor) -> Tensor:
        flat = token_ids.flatten()
        if self.stored is None or self.stored.shape[-1] != self.width:
            return _noise(flat, self.width).reshape(*token_ids.shape, self.width)
        rows = [_read(self.stored, range(int(i), int(i) + 1)) for i in flat]
        return torch.cat(rows).reshape(*token_ids.shape, self.width)


def _read(stored: StoredTensor | None, rows: Sequence[int]) -> Tensor:
    assert stored is not None
    return stored.rows(rows[0], rows[-1] + 1).float()


def _noise(seeds: Tensor, width: int) -> Tensor:
    """[len(seeds), width] in (-1, 1): made-up rows that depend on their seed alone."""
    angle = seeds.double()[:, None] * 12.9898 + torch.arange(width).double()[None] * 78.233
    return ((angle.sin() * 43758.5453).frac() * 2).remainder(2).sub(1).float()
