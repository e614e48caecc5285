"""What a drafter is: every choice that changes its arithmetic, in one frozen record."""

from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class RopeConfig:
    """Rotary embedding: base `theta` and the Hugging Face scaling `type` with its parameters; `partial` is the part of
    every head that is rotated (its first dimensions)."""

    theta: float = 10000.0
    type: Literal["default", "linear", "dynamic", "llama3", "yarn"] = "default"
    params: dict[str, Any] = field(default_factory=dict)
    partial: float = 1.0


@dataclass(frozen=True)
class DrafterConfig:
    """The neutral description of an EAGLE-3 drafter (Llama and Qwen3 families).

    `aux_layers` are boundaries: boundary k is the input of target layer k, Hugging Face's `hidden_states[k]`.
    """

    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    draft_vocab_size: int
    target_hidden_size: int
    aux_layers: tuple[int, ...]
    num_layers: int = 1
    rms_norm_eps: float = 1e-5
    max_position_embeddings: int = 8192
    hidden_act: str = "silu"
    rope: RopeConfig = field(default_factory=RopeConfig)
    # residual of the first layer: False = the fused state itself, True = its normalised form
    norm_before_residual: bool = False
    # RMSNorm before fusion: none, one over the concatenation (`input_norm`), one per feature (`fc_norm.i`), or in this order both
    pre_fc_norm: Literal["none", "concat", "per_aux", "both"] = "none"
    # True: the post-norm state is fed to the next draft step (vLLM, SGLang, speculators `norm_output`)
    norm_output: bool = False
    # RMSNorm on every query and key head (the Qwen3 family)
    qk_norm: bool = False
    # positions that a draft row looks back on, its own among them (speculators trains with 2048); None: all
    sliding_window: int | None = None
    fc_bias: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    own_embedding: bool = False
    # P-EAGLE: the token that stands where none is drafted yet, so that one pass drafts a whole chain; None: a token a pass
    mask_token_id: int | None = None
    # of a parallel drafter: a node's state depends on its token (`causal`), else all nodes of a depth have the same children
    causal_head: bool = False

    @property
    def parallel(self) -> bool:
        """Whether one pass drafts every depth (P-EAGLE)."""
        return self.mask_token_id is not None

    @property
    def num_aux(self) -> int:
        return len(self.aux_layers)

    @property
    def norms_concatenation(self) -> bool:
        return self.pre_fc_norm in ("concat", "both")

    @property
    def norms_features(self) -> bool:
        return self.pre_fc_norm in ("per_aux", "both")
