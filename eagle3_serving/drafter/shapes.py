"""The parameters that a DrafterConfig implies, without making any."""

from eagle3_serving.drafter.config import DrafterConfig

Shapes = dict[str, tuple[int, ...]]


def parameter_shapes(config: DrafterConfig) -> Shapes:
    """Name -> shape of every parameter of `Drafter(config)`; what a whole checkpoint holds, the vocabulary map aside."""
    hidden, aux = config.hidden_size, config.num_aux * config.target_hidden_size
    shapes: Shapes = {
        "embed_tokens.weight": (config.vocab_size, hidden),
        "fusion.fc.weight": (hidden, aux),
        "norm.weight": (hidden,),
        "lm_head.weight": (config.draft_vocab_size, hidden),
    }
    if config.fc_bias:
        shapes["fusion.fc.bias"] = (hidden,)
    if config.norms_concatenation:
        shapes["fusion.input_norm.weight"] = (aux,)
    if config.norms_features:
        shapes |= {f"fusion.fc_norm.{i}.weight": (config.target_hidden_size,) for i in range(config.num_aux)}
    queries, keys = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    for i in range(config.num_layers):
        layer, width = f"layers.{i}", 2 * hidden if i == 0 else hidden
        shapes |= {f"{layer}.{norm}.weight": (hidden,) for norm in ("hidden_norm", "post_attention_layernorm")}
        if i == 0:
            shapes[f"{layer}.input_layernorm.weight"] = (hidden,)
        for name, rows, columns in (
            ("q_proj", queries, width),
            ("k_proj", keys, width),
            ("v_proj", keys, width),
            ("o_proj", hidden, queries),
        ):
            shapes |= _linear(f"{layer}.self_attn.{name}", rows, columns, config.attention_bias)
        shapes |= _mlp(config, layer)
        if config.qk_norm:
            shapes |= {f"{layer}.self_attn.{norm}.weight": (config.head_dim,) for norm in ("q_norm", "k_norm")}
    if config.causal_head:
        shapes |= {f"causal.{norm}.weight": (hidden,) for norm in ("embedding_norm", "state_norm", "mlp_norm")}
        shapes |= _linear("causal.proj", hidden, 2 * hidden, False) | _mlp(config, "causal")
    return shapes


def _mlp(config: DrafterConfig, within: str) -> Shapes:
    hidden, wide, shapes = config.hidden_size, config.intermediate_size, Shapes()
    for name, rows, columns in (("gate_proj", wide, hidden), ("up_proj", wide, hidden), ("down_proj", hidden, wide)):
        shapes |= _linear(f"{within}.mlp.{name}", rows, columns, config.mlp_bias)
    return shapes


def _linear(name: str, rows: int, columns: int, bias: bool) -> Shapes:
    weight: Shapes = {f"{name}.weight": (rows, columns)}
    return weight | {f"{name}.bias": (rows,)} if bias else weight
