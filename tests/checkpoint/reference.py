"""A drafter's arithmetic written a second time, row by row, and what vLLM, SGLang and EAGLE load of a directory, by hand.

Nothing of the package is used here but the record of sizes: what it proves is held against this.
Shapes: H draft hidden, F concatenated features, Vt target vocabulary, Vd draft vocabulary.
"""

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor

Tensors = dict[str, Tensor]
ROWS, STEPS = 5, 3


class Rules(NamedTuple):
    """All that the arithmetic depends on beside the weights; `ids` [Vd] are absolute."""

    aux: tuple[int, ...]
    heads: int
    kv_heads: int
    head_dim: int
    eps: float
    rope: dict[str, Any]
    norm_before_fc: bool
    fc_norm: bool
    norm_before_residual: bool
    norm_output: bool
    qk_norm: bool
    layers: int
    window: int | None
    ids: Tensor


def features(boundary: int, width: int) -> Tensor:
    """[ROWS, width] of a made-up target: boundary k's alone tell k."""
    return torch.randn(ROWS, width, generator=torch.Generator().manual_seed(1000 + boundary))


def logits(w: Tensors, rules: Rules, width: int) -> Tensor:
    """[STEPS, Vt] log-scale scores of target ids, -inf outside the draft vocabulary, after ROWS rows of features."""
    x = torch.cat([features(k, width) for k in rules.aux], dim=1)
    if rules.norm_before_fc:
        x = _norm(x, w["input_norm.weight"], rules.eps)
    if rules.fc_norm:
        parts = x.split(width, dim=1)
        x = torch.cat([_norm(p, w[f"fc_norm.{i}.weight"], rules.eps) for i, p in enumerate(parts)], dim=1)
    states = x @ w["fc.weight"].T + w.get("fc.bias", torch.zeros(()))
    tokens = [(7 * i + 3) % len(w["embed_tokens.weight"]) for i in range(ROWS)]
    caches: list[list[tuple[Tensor, Tensor]]] = [[] for _ in range(rules.layers)]
    found, at, fed_back, drafted = [], 11, states[0], 0
    for step in range(ROWS + STEPS - 1):
        state = states[step] if step < ROWS else fed_back
        token = tokens[step] if step < ROWS else drafted
        for layer in range(rules.layers):
            state = _layer(w, rules, layer, w["embed_tokens.weight"][token], state, at + step, caches[layer])
        normed = _norm(state, w["norm.weight"], rules.eps)
        fed_back = normed if rules.norm_output else state
        scores = torch.full((len(w["embed_tokens.weight"]),), -math.inf)
        scores[rules.ids] = normed @ w["lm_head.weight"].T
        drafted = int(scores.argmax())
        if step >= ROWS - 1:
            found.append(scores)
    return torch.stack(found)


def _layer(
    w: Tensors, rules: Rules, i: int, embedding: Tensor, state: Tensor, at: int, cache: list[tuple[Tensor, Tensor]]
) -> Tensor:
    name = f"layers.{i}"
    normed = _norm(state, w[f"{name}.hidden_norm.weight"], rules.eps)
    residual = normed if rules.norm_before_residual and i == 0 else state
    if i == 0:
        normed = torch.cat([_norm(embedding, w[f"{name}.input_layernorm.weight"], rules.eps), normed])
    heads = {}
    for which, count in (("q", rules.heads), ("k", rules.kv_heads), ("v", rules.kv_heads)):
        heads[which] = _linear(w, f"{name}.self_attn.{which}_proj", normed).view(count, rules.head_dim)
        if rules.qk_norm and which != "v":
            heads[which] = _norm(heads[which], w[f"{name}.self_attn.{which}_norm.weight"], rules.eps)
        if which != "v":
            heads[which] = _rotated(heads[which], at, rules)
    cache.append((heads["k"], heads["v"]))
    seen = cache[-rules.window :] if rules.window else cache
    out = []
    for head in range(rules.heads):
        kv = head * rules.kv_heads // rules.heads
        weights = torch.stack([heads["q"][head] @ k[kv] / math.sqrt(rules.head_dim) for k, _ in seen]).softmax(0)
        out.append(sum(p * v[kv] for p, (_, v) in zip(weights, seen, strict=True)))
    state = residual + _linear(w, f"{name}.self_attn.o_proj", torch.cat([torch.as_tensor(o) for o in out]))
    x = _norm(state, w[f"{name}.post_attention_layernorm.weight"], rules.eps)
    gate = torch.nn.functional.silu(_linear(w, f"{name}.mlp.gate_proj", x)) * _linear(w, f"{name}.mlp.up_proj", x)
    return state + _linear(w, f"{name}.mlp.down_proj", gate)


def _linear(w: Tensors, name: str, x: Tensor) -> Tensor:
    return w[f"{name}.weight"] @ x + w.get(f"{name}.bias", torch.zeros(()))


def _norm(x: Tensor, gain: Tensor, eps: float) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * gain


def _rotated(x: Tensor, at: int, rules: Rules) -> Tensor:
    """Pairs (j, j + R/2) of the first R dimensions turned by at * frequency; default and linear types alone."""
    rope, turned = rules.rope, int(rules.head_dim * rules.rope.get("partial", 1.0))
    out = x.clone()
    for j in range(turned // 2):
        angle = at / rope["theta"] ** (2 * j / turned) / rope.get("factor", 1.0)
        a, b = x[:, j], x[:, j + turned // 2]
        out[:, j] = a * math.cos(angle) - b * math.sin(angle)
        out[:, j + turned // 2] = b * math.cos(angle) + a * math.sin(angle)
    return out


def stored(folder: Path) -> tuple[dict[str, Any], Tensors]:
    tensors = {n: t.float() if t.is_floating_point() else t for n, t in load_file(folder / "model.safetensors").items()}
    return json.loads((folder / "config.json").read_text()), tensors


class Target(NamedTuple):
    """What engines know of the target."""

    layers: int
    width: int
    embedding: Tensor
    head: Tensor

    @property
    def defaults(self) -> tuple[int, ...]:
        return 2, self.layers // 2, self.layers - 3


def of_vllm(folder: Path, target: Target) -> tuple[Tensors, Rules]:
    """As vLLM 0.32 loads it: boundaries at the top level, layers counted, the first norm of later ones `input_layernorm`."""
    raw, tensors = stored(folder)
    keys = raw
    if "speculators_config" in raw:
        keys = {**raw["transformer_layer_config"]}
        for key in ("draft_vocab_size", "norm_before_fc", "fc_norm", "norm_output", "eagle_aux_hidden_state_layer_ids"):
            keys[key] = raw.get(key)
        keys["norm_before_residual"] = raw.get("norm_before_residual", True)
        keys["architectures"] = [
            "Eagle3Qwen3ForCausalLM" if keys["model_type"] == "qwen3" else "Eagle3LlamaForCausalLM"
        ]
    assert keys["hidden_act"] == "silu" and keys["architectures"][0] in (
        "LlamaForCausalLMEagle3",
        "Eagle3LlamaForCausalLM",
        "Eagle3Qwen3ForCausalLM",
    )
    qwen3, w = "Qwen3" in keys["architectures"][0], {}
    for name, tensor in tensors.items():
        name = name.replace("midlayer.", "layers.0.")
        assert not name.startswith("model.")
        if not name.startswith("layers.0.") and name.startswith("layers."):
            if ".hidden_norm." in name:
                continue  # a parameter that its later layers have and do not use
            name = name.replace(".input_layernorm.", ".hidden_norm.")
        w[name] = tensor
    w.setdefault("embed_tokens.weight", target.embedding)
    own_head = "lm_head.weight" in w
    w.setdefault("lm_head.weight", target.head)
    draft, vocab = keys.get("draft_vocab_size") or keys["vocab_size"], len(target.embedding)
    assert own_head or draft == vocab
    assert ("d2t" in w) == (draft != vocab)
    assert (
        keys["num_aux_hidden_states"] * target.width == w["fc.weight"].shape[1] or "num_aux_hidden_states" not in keys
    )
    biased = bool(keys.get("attention_bias")) and not qwen3
    assert not biased or all(f"layers.{i}.self_attn.o_proj.bias" in w for i in range(keys["num_hidden_layers"]))
    for bias in [name for name in w if name.endswith(".bias")]:  # what its class has no parameter for is skipped
        place = name_of_bias(bias)
        has = {
            "attention": bool(keys.get("attention_bias")),
            "output": biased,
            "mlp": bool(keys.get("mlp_bias")) and not qwen3,
        }
        if not has.get(place, False):
            del w[bias]
    window = keys["sliding_window"] if "sliding_attention" in (keys.get("layer_types") or ()) else None
    ids = w["d2t"] + torch.arange(draft) if "d2t" in w else torch.arange(vocab)
    chosen = keys.get("eagle_aux_hidden_state_layer_ids")
    return w, Rules(
        aux=tuple(sorted(set(chosen))) if chosen else target.defaults,
        heads=keys["num_attention_heads"],
        kv_heads=keys["num_key_value_heads"],
        head_dim=keys["head_dim"],
        eps=keys["rms_norm_eps"],
        rope=rope_of(keys["rope_parameters"]),
        norm_before_fc=bool(keys.get("norm_before_fc")),
        fc_norm=bool(keys.get("fc_norm")),
        norm_before_residual=bool(keys.get("norm_before_residual")),
        norm_output=bool(keys.get("norm_output")),
        qk_norm=qwen3,
        layers=keys["num_hidden_layers"],
        window=window,
        ids=ids,
    )


def name_of_bias(name: str) -> str:
    if name == "fc.bias":
        return "fc"
    return "output" if "o_proj" in name else "mlp" if ".mlp." in name else "attention"


def of_sglang(folder: Path, target: Target) -> tuple[Tensors, Rules]:
    """As SGLang 0.5.23 loads it: nested ids of layer outputs, the target's embedding in any case where the widths are equal."""
    keys, tensors = stored(folder)
    assert keys["architectures"] == ["LlamaForCausalLMEagle3"] and keys["hidden_act"] == "silu"
    bias, w = bool(keys.get("bias")), {}
    for name, tensor in tensors.items():
        name = name.replace("midlayer", "layers.0").removeprefix("model.")
        if name.startswith("layers.") and not name.startswith("layers.0.") and ".input_layernorm." in name:
            continue
        if name.endswith(".bias") and not (bias and (name == "fc.bias" or "o_proj" in name)):
            continue
        w[name] = tensor
    assert not bias or all(f"layers.{i}.self_attn.o_proj.bias" in w for i in range(keys["num_hidden_layers"]))
    assert keys.get("target_hidden_size", 1) is not None
    if keys.get("target_hidden_size", keys["hidden_size"]) == keys["hidden_size"]:
        w["embed_tokens.weight"] = target.embedding
    if keys.get("tie_word_embeddings"):
        w["lm_head.weight"] = w["embed_tokens.weight"]
    elif keys["draft_vocab_size"] is None:
        w["lm_head.weight"] = target.head
    nested = (keys.get("eagle_config") or {}).get("eagle_aux_hidden_state_layer_ids")
    rope = rope_of(keys["rope_parameters"])
    rope["partial"] = keys.get("partial_rotary_factor", 1.0)
    return w, Rules(
        aux=tuple(sorted({i + 1 for i in nested})) if nested else target.defaults,
        heads=keys["num_attention_heads"],
        kv_heads=keys["num_key_value_heads"],
        head_dim=keys["head_dim"],
        eps=keys["rms_norm_eps"],
        rope=rope,
        norm_before_fc=bool(keys.get("norm_before_fc")),
        fc_norm=bool(keys.get("fc_norm") or keys.get("use_aux_norm")),
        norm_before_residual=False,
        norm_output=bool(keys.get("norm_output")),
        qk_norm=False,
        layers=keys["num_hidden_layers"],
        window=None,
        ids=w["d2t"] + torch.arange(len(w["d2t"])) if "d2t" in w else torch.arange(len(w["lm_head.weight"])),
    )


def of_eagle(folder: Path, target: Target) -> tuple[Tensors, Rules]:
    """As SafeAILab/EAGLE loads it: strict=False, the target's embedding only where no target_hidden_size stands."""
    keys, tensors = stored(folder)
    w = {
        name.replace("midlayer.", "layers.0."): tensor for name, tensor in tensors.items() if not name.endswith(".bias")
    }
    if "target_hidden_size" not in keys:
        w.setdefault("embed_tokens.weight", target.embedding)
    scaling = keys.get("rope_scaling")
    rope = {"theta": 10000.0, "factor": scaling["factor"]} if scaling else {"theta": keys.get("rope_theta", 10000.0)}
    vocab = keys["vocab_size"]
    return w, Rules(
        aux=target.defaults,
        heads=keys["num_attention_heads"],
        kv_heads=keys["num_key_value_heads"],
        head_dim=keys["hidden_size"] // keys["num_attention_heads"],
        eps=keys["rms_norm_eps"],
        rope=rope,
        norm_before_fc=False,
        fc_norm=False,
        norm_before_residual=False,
        norm_output=False,
        qk_norm=False,
        layers=1,
        window=None,
        ids=w["d2t"] + torch.arange(len(w["d2t"])) if keys["draft_vocab_size"] != vocab else torch.arange(vocab),
    )


def rope_of(parameters: dict[str, Any]) -> dict[str, Any]:
    assert parameters["rope_type"] in ("default", "linear")
    return {
        "theta": parameters["rope_theta"],
        "factor": parameters.get("factor", 1.0),
        "partial": parameters.get("partial_rotary_factor", 1.0),
    }


READERS = {
    "vllm": (of_vllm,),
    "speculators": (of_vllm,),
    "sglang": (of_sglang,),
    "universal": (of_vllm, of_sglang),
    "eagle": (of_eagle,),
}
