"""The draft decoder layer: a Llama layer whose first instance reads [norm(embedding), norm(hidden)], 2H wide."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eagle3_serving.drafter.config import DrafterConfig
from eagle3_serving.drafter.layers import Attend, LayerFactory
from eagle3_serving.errors import InputError

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_pytorch_tanh": lambda x: F.gelu(x, approximate="tanh"),
}


class DraftAttention(nn.Module):
    """Projections and rotary embedding; the attention itself is the caller's `attend`."""

    def __init__(self, config: DrafterConfig, layer: int, factory: LayerFactory) -> None:
        super().__init__()
        name, bias = f"layers.{layer}.self_attn", config.attention_bias
        width = config.hidden_size * (2 if layer == 0 else 1)
        q_size = config.num_attention_heads * config.head_dim
        kv_size = config.num_key_value_heads * config.head_dim
        self.layer, self.head_dim = layer, config.head_dim
        self.q_proj = factory.linear(f"{name}.q_proj", width, q_size, bias)
        self.k_proj = factory.linear(f"{name}.k_proj", width, kv_size, bias)
        self.v_proj = factory.linear(f"{name}.v_proj", width, kv_size, bias)
        self.o_proj = factory.linear(f"{name}.o_proj", q_size, config.hidden_size, bias)
        self.q_norm: nn.Module | None = None
        self.k_norm: nn.Module | None = None
        if config.qk_norm:
            self.q_norm = factory.norm(f"{name}.q_norm", config.head_dim, config.rms_norm_eps)
            self.k_norm = factory.norm(f"{name}.k_norm", config.head_dim, config.rms_norm_eps)
        self.rotary = factory.rotary(config)

    def forward(self, x_BLI: Tensor, positions_BL: Tensor, attend: Attend) -> Tensor:
        q_BLAD = self._heads(self.q_proj, self.q_norm, x_BLI)
        k_BLKD = self._heads(self.k_proj, self.k_norm, x_BLI)
        q_BLAD, k_BLKD = self.rotary(positions_BL, q_BLAD, k_BLKD)
        v_BLKD = self._heads(self.v_proj, None, x_BLI)
        out: Tensor = self.o_proj(attend(self.layer, q_BLAD, k_BLKD, v_BLKD).flatten(-2))
        return out

    def keys_values(self, x_BLI: Tensor, positions_BL: Tensor) -> tuple[Tensor, Tensor]:
        """What `forward` gives `attend` as keys and values, each [B, L, K, D], and no more than that."""
        k_BLKD = self._heads(self.k_proj, self.k_norm, x_BLI)
        _, k_BLKD = self.rotary(positions_BL, k_BLKD, k_BLKD)
        return k_BLKD, self._heads(self.v_proj, None, x_BLI)

    def _heads(self, project: nn.Module, norm: nn.Module | None, x_BLI: Tensor) -> Tensor:
        heads_BLXD: Tensor = project(x_BLI).unflatten(-1, (-1, self.head_dim))
        return heads_BLXD if norm is None else norm(heads_BLXD)


class DraftMLP(nn.Module):
    """`name`: its path inside the drafter."""

    def __init__(self, config: DrafterConfig, name: str, factory: LayerFactory) -> None:
        super().__init__()
        if config.hidden_act not in ACTIVATIONS:
            raise InputError(f"hidden_act {config.hidden_act!r} is not supported; known are {', '.join(ACTIVATIONS)}")
        bias, wide = config.mlp_bias, config.intermediate_size
        self.act = ACTIVATIONS[config.hidden_act]
        self.gate_proj = factory.linear(f"{name}.gate_proj", config.hidden_size, wide, bias)
        self.up_proj = factory.linear(f"{name}.up_proj", config.hidden_size, wide, bias)
        self.down_proj = factory.linear(f"{name}.down_proj", wide, config.hidden_size, bias)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(self.act(self.gate_proj(x)) * self.up_proj(x))
        return out


class DraftLayer(nn.Module):
    """One layer. Layer 0 reads embedding and hidden state; later layers read the hidden state alone."""

    def __init__(self, config: DrafterConfig, layer: int, factory: LayerFactory) -> None:
        super().__init__()
        size, eps, name = config.hidden_size, config.rms_norm_eps, f"layers.{layer}"
        self.layer, self.norm_before_residual = layer, config.norm_before_residual
        self.hidden_norm = factory.norm(f"{name}.hidden_norm", size, eps)
        if layer == 0:
            self.input_layernorm = factory.norm(f"{name}.input_layernorm", size, eps)
        self.self_attn = DraftAttention(config, layer, factory)
        self.post_attention_layernorm = factory.norm(f"{name}.post_attention_layernorm", size, eps)
        self.mlp = DraftMLP(config, f"{name}.mlp", factory)

    def forward(self, embedding_BLH: Tensor, hidden_BLH: Tensor, positions_BL: Tensor, attend: Attend) -> Tensor:
        normed_BLH = self.hidden_norm(hidden_BLH)
        residual_BLH = normed_BLH if self.norm_before_residual and self.layer == 0 else hidden_BLH
        hidden_BLH = residual_BLH + self.self_attn(self._read(embedding_BLH, normed_BLH), positions_BL, attend)
        out: Tensor = hidden_BLH + self.mlp(self.post_attention_layernorm(hidden_BLH))
        return out

    def keys_values(self, embedding_BLH: Tensor, hidden_BLH: Tensor, positions_BL: Tensor) -> tuple[Tensor, Tensor]:
        """The layer's rows of the KV cache, each [B, L, K, D]."""
        return self.self_attn.keys_values(self._read(embedding_BLH, self.hidden_norm(hidden_BLH)), positions_BL)

    def _read(self, embedding_BLH: Tensor, normed_BLH: Tensor) -> Tensor:
        if self.layer:
            return normed_BLH
        return torch.cat([self.input_layernorm(embedding_BLH), normed_BLH], dim=-1)
