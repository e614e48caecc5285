"""A checkpoint's config.json -> the neutral DrafterConfig, whichever dialect wrote it."""

import json
from pathlib import Path
from typing import Any, Literal

from eagle3_serving.drafter.config import DrafterConfig, RopeConfig
from eagle3_serving.errors import InputError

Json = dict[str, Any]


def read_json(path: Path) -> Json:
    """A JSON object from `path`, or InputError that names the file."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path} is missing; a drafter directory holds config.json and model.safetensors") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}") from None
    if not isinstance(value, dict):
        raise InputError(f"{path} does not hold a JSON object")
    return value


def default_aux_layers(num_target_layers: int) -> tuple[int, int, int]:
    """The paper's low, middle and high boundaries: the inputs of layers 2, n // 2 and n - 3."""
    return 2, num_target_layers // 2, num_target_layers - 3


def parse_config(
    raw: Json, shapes: dict[str, tuple[int, ...]], num_target_layers: int | None, where: Path
) -> DrafterConfig:
    """Neutral config from a raw config.json and the shapes of the canonically named tensors.

    Counts that the tensors tell (layers, widths, biases) come from the tensors, because configs are known to be
    wrong about them. Raises InputError on a missing key or on auxiliary layers that cannot be decided.
    """
    speculators = "speculators_model_type" in raw
    layer = {**raw, **raw["transformer_layer_config"]} if "transformer_layer_config" in raw else raw
    try:
        hidden, heads = int(layer["hidden_size"]), int(layer["num_attention_heads"])
        vocab = int(layer["vocab_size"])
        intermediate = int(layer["intermediate_size"])
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{where}: config.json lacks a usable value for {error}") from None
    if "fusion.fc.weight" not in shapes or "lm_head.weight" not in shapes:
        missing = "fc.weight" if "fusion.fc.weight" not in shapes else "lm_head.weight"
        raise InputError(f"{where}: tensor {missing} is missing; this is not a complete EAGLE-3 drafter")
    target_hidden = int(raw.get("target_hidden_size") or hidden)
    fc_in = shapes["fusion.fc.weight"][-1]
    if fc_in == 2 * hidden and "layers.0.hidden_norm.weight" not in shapes:
        raise InputError(f"{where}: fc reads {fc_in} = 2 x hidden_size and there is no hidden_norm: an EAGLE-1/2 draft")
    if fc_in % target_hidden:
        raise InputError(
            f"{where}: fc.weight reads {fc_in} features, which is no multiple of target hidden size {target_hidden}"
        )
    pre_norm: Literal["none", "concat", "per_aux"] = "none"
    if "fusion.input_norm.weight" in shapes:
        pre_norm = "concat"
    elif "fusion.fc_norm.0.weight" in shapes:
        pre_norm = "per_aux"
    return DrafterConfig(
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_attention_heads=heads,
        num_key_value_heads=int(layer.get("num_key_value_heads") or heads),
        head_dim=int(layer.get("head_dim") or hidden // heads),
        vocab_size=vocab,
        draft_vocab_size=int(raw.get("draft_vocab_size") or shapes["lm_head.weight"][0]),
        target_hidden_size=target_hidden,
        aux_layers=_aux_layers(raw, fc_in // target_hidden, num_target_layers, where),
        num_layers=1 + max((int(k.split(".")[1]) for k in shapes if k.startswith("layers.")), default=0),
        rms_norm_eps=float(layer.get("rms_norm_eps", 1e-6)),
        max_position_embeddings=int(layer.get("max_position_embeddings", 2048)),
        hidden_act=str(layer.get("hidden_act", "silu")),
        rope=_rope(layer, where),
        norm_before_residual=bool(raw.get("norm_before_residual", speculators)),
        pre_fc_norm=pre_norm,
        norm_output=bool(raw.get("norm_output", False)),
        fc_bias="fusion.fc.bias" in shapes,
        attention_bias="layers.0.self_attn.q_proj.bias" in shapes,
        mlp_bias="layers.0.mlp.gate_proj.bias" in shapes,
        own_embedding="embed_tokens.weight" in shapes,
    )


def _aux_layers(raw: Json, count: int, n: int | None, where: Path) -> tuple[int, ...]:
    top = raw.get("eagle_aux_hidden_state_layer_ids")
    nested = (raw.get("eagle_config") or {}).get("eagle_aux_hidden_state_layer_ids")
    ids = tuple(int(i) for i in (top or nested or ()))
    if not ids:
        if n is None or count != 3:
            raise InputError(
                f"{where}: no auxiliary layer ids in config.json and {count} features; name the target (its layer count decides)"
            )
        return default_aux_layers(n)
    if len(ids) != count:
        raise InputError(f"{where}: config.json names {len(ids)} auxiliary layers, fc.weight reads {count} features")
    if top:
        return ids  # top-level ids are boundaries in every engine that reads them
    # nested ids are "output of layer k - 1" by most writers, boundaries by some: only the target's depth can tell
    if n is not None and ids == default_aux_layers(n):
        return ids
    if ids[0] == 1 or (n is not None and ids == tuple(i - 1 for i in default_aux_layers(n))):
        return tuple(i + 1 for i in ids)
    raise InputError(
        f"{where}: nested auxiliary layer ids {list(ids)} may count boundaries or layer outputs; "
        "write boundaries as top-level eagle_aux_hidden_state_layer_ids"
    )


def _rope(layer: Json, where: Path) -> RopeConfig:
    parameters = layer.get("rope_parameters") or layer.get("rope_scaling") or {}
    kind: Any = parameters.get("rope_type") or parameters.get("type") or "default"
    if kind not in ("default", "linear", "dynamic", "llama3"):
        raise InputError(f"{where}: rope type {kind!r} is not supported; known are default, linear, dynamic, llama3")
    theta = float(parameters.get("rope_theta") or layer.get("rope_theta") or 10000.0)
    params = {k: v for k, v in parameters.items() if k not in ("rope_type", "type", "rope_theta")}
    return RopeConfig(theta, kind, params)


def to_json(config: DrafterConfig, dtype: str) -> Json:
    """The config.json that both vLLM and SGLang read rightly (Llama family)."""
    rope = {"rope_type": config.rope.type, "rope_theta": config.rope.theta, **config.rope.params}
    return {
        "architectures": ["LlamaForCausalLMEagle3"],
        "model_type": "llama",
        "hidden_size": config.hidden_size,
        "target_hidden_size": config.target_hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "hidden_act": config.hidden_act,
        "rms_norm_eps": config.rms_norm_eps,
        "max_position_embeddings": config.max_position_embeddings,
        "rope_theta": config.rope.theta,
        "rope_scaling": None if config.rope.type == "default" else {k: v for k, v in rope.items() if k != "rope_theta"},
        "rope_parameters": rope,
        "attention_bias": config.attention_bias,
        "mlp_bias": config.mlp_bias,
        "vocab_size": config.vocab_size,
        "draft_vocab_size": config.draft_vocab_size,
        "tie_word_embeddings": False,
        "norm_before_residual": config.norm_before_residual,
        "norm_before_fc": config.pre_fc_norm == "concat",
        "fc_norm": config.pre_fc_norm == "per_aux",
        "norm_output": config.norm_output,
        "num_aux_hidden_states": config.num_aux,
        # vLLM reads the top-level boundaries, SGLang the nested "output of layer k - 1"
        "eagle_aux_hidden_state_layer_ids": list(config.aux_layers),
        "eagle_config": {
            "use_aux_hidden_state": True,
            "eagle_aux_hidden_state_layer_ids": [k - 1 for k in config.aux_layers],
        },
        "dtype": dtype,
        "torch_dtype": dtype,
    }
