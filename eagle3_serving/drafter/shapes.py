"""The parameters that a DrafterConfig implies, without making any."""

from eagle3_serving.drafter.config import DrafterConfig

Shapes = dict[str, tuple[int, ...]]


def parameter_shapes(config: DrafterConfig) -> Shapes:
    """Name -> shape of every parameter of `Drafter(config)`; what a whole checkpoint holds, the vocabulary map aside."""
    hidden, wide, aux = config.hidden_size, config.intermediate_size, config.num_aux * config.target_hidden_size
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
        projections = {
            "self_attn.q_proj": (queries, width, config.attention_bias),
            "self_attn.k_proj": (keys, width, config.attention_bias),
            "self_attn.v_proj": (keys, width, config.attention_bias),
            "self_attn.o_proj": (hidden, queries, config.attention_bias),
            "mlp.gate_proj": (wide, hidden, config.mlp_bias),
            "mlp.up_proj": (wide, hidden, config.mlp_bias),
            "mlp.down_proj": (hidden, wide, config.mlp_bias),
        }
        for name, (rows, columns, bias) in projections.items():
            shapes[f"{layer}.{name}.weight"] = (rows, columns)
            if bias:
                shapes[f"{layer}.{name}.bias"] = (rows,)
        if config.qk_norm:
            shapes |= {f"{layer}.self_attn.{norm}.weight": (config.head_dim,) for norm in ("q_norm", "k_norm")}
    return shapes
