"""Tiny drafters with known weights, written down by hand as each trainer writes them; none of our writers is used."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from eagle3_serving.drafter import DrafterConfig, RopeConfig
from eagle3_serving.drafter.shapes import parameter_shapes

N = 12  # layers of the target
VOCAB, DRAFT_VOCAB, HIDDEN = 64, 24, 32
IDS = torch.tensor(sorted((i * 7 + 3) % VOCAB for i in range(DRAFT_VOCAB)))
Tensors = dict[str, Tensor]
Json = dict[str, Any]

CONFIG = DrafterConfig(
    hidden_size=HIDDEN,
    intermediate_size=48,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    vocab_size=VOCAB,
    draft_vocab_size=DRAFT_VOCAB,
    target_hidden_size=HIDDEN,
    aux_layers=(2, 6, 9),
    rms_norm_eps=1e-5,
    max_position_embeddings=512,
    rope=RopeConfig(5000.0),
)


class Known(NamedTuple):
    """What a directory must turn out to mean: `ids` absolute, None = identity; `tensors` under the Drafter's names."""

    config: DrafterConfig
    tensors: Tensors
    ids: Tensor | None


def known(seed: int = 0, **changes: Any) -> Known:
    config = replace(CONFIG, **changes)
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in parameter_shapes(config).items():
        value = torch.randn(shape, generator=generator) * 0.4
        tensors[name] = value + 1 if "norm" in name else value
    if not config.own_embedding:
        del tensors["embed_tokens.weight"]
    return Known(config, tensors, None if config.draft_vocab_size == VOCAB else IDS)


def embedding(seed: int = 99) -> Tensor:
    """A target's [VOCAB, HIDDEN]."""
    return torch.randn(VOCAB, HIDDEN, generator=torch.Generator().manual_seed(seed))


def target_directory(folder: Path, model_type: str = "llama", layers: int = N) -> Path:
    """A target of which only sizes, embedding and head are there."""
    folder.mkdir()
    config = {"model_type": model_type, "num_hidden_layers": layers, "hidden_size": HIDDEN, "vocab_size": VOCAB}
    (folder / "config.json").write_text(json.dumps({**config, "architectures": ["LlamaForCausalLM"]}))
    save_file({"model.embed_tokens.weight": embedding(), "lm_head.weight": embedding(98)}, folder / "model.safetensors")
    return folder


def plain_config(config: DrafterConfig) -> Json:
    """The layer alone, in the older style of keys that trainers write."""
    return {
        "model_type": "llama",
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": config.rms_norm_eps,
        "max_position_embeddings": config.max_position_embeddings,
        "rope_theta": config.rope.theta,
        "vocab_size": VOCAB,
        "draft_vocab_size": config.draft_vocab_size,
        "tie_word_embeddings": False,
    }


def vocabulary(ids: Tensor | None) -> Tensors:
    if ids is None:
        return {}
    mask = torch.zeros(VOCAB, dtype=torch.bool)
    mask[ids] = True
    return {"d2t": ids - torch.arange(len(ids)), "t2d": mask}


def save(folder: Path, config: Json, tensors: Tensors) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file({name: t.contiguous().clone() for name, t in tensors.items()}, folder / "model.safetensors")
    return folder


def _names(tensors: Tensors, rename: Callable[[str], str]) -> Tensors:
    return {rename(name.removeprefix("fusion.")): tensor for name, tensor in tensors.items()}


def midlayer(name: str) -> str:
    return name.replace("layers.0.", "midlayer.")


def counted(name: str) -> str:
    """vLLM's and speculators' names."""
    return name if name.startswith("layers.0.") else name.replace("hidden_norm", "input_layernorm")


def as_eagle(folder: Path, drafter: Known) -> Path:
    config = {**plain_config(drafter.config), "architectures": ["LlamaForCausalLM"], "num_hidden_layers": 40}
    del config["head_dim"]
    return save(folder, config, _names(drafter.tensors, midlayer) | vocabulary(drafter.ids))


def as_eagle_pickle(folder: Path, drafter: Known) -> Path:
    as_eagle(folder, drafter)
    (folder / "model.safetensors").unlink()
    torch.save(_names(drafter.tensors, midlayer) | vocabulary(drafter.ids), folder / "pytorch_model.bin")
    return folder


def as_specforge(folder: Path, drafter: Known, explicit: bool = False) -> Path:
    config = {**plain_config(drafter.config), "architectures": ["LlamaForCausalLMEagle3"]}
    if explicit:
        ids = [k - 1 for k in drafter.config.aux_layers]
        config["eagle_config"] = {"eagle_aux_hidden_state_layer_ids": ids, "use_aux_hidden_state": True}
    if drafter.config.pre_fc_norm == "per_aux":
        config |= {"fc_norm": True, "norm_output": drafter.config.norm_output}
    ids_or_all = torch.arange(VOCAB) if drafter.ids is None else drafter.ids  # it writes the map in any case
    return save(folder, config, _names(drafter.tensors, midlayer) | vocabulary(ids_or_all))


def as_vllm(folder: Path, drafter: Known) -> Path:
    c = drafter.config
    config = {
        **plain_config(c),
        "architectures": ["Eagle3Qwen3ForCausalLM" if c.qk_norm else "Eagle3LlamaForCausalLM"],
        "model_type": "qwen3" if c.qk_norm else "llama",
        "norm_before_residual": c.norm_before_residual,
        "norm_before_fc": c.norms_concatenation,
        "fc_norm": c.norms_features,
        "norm_output": c.norm_output,
        "attention_bias": c.attention_bias,
        "target_hidden_size": c.target_hidden_size,
        "num_aux_hidden_states": c.num_aux,
        "eagle_aux_hidden_state_layer_ids": list(c.aux_layers),
    }
    return save(folder, config, _names(drafter.tensors, counted) | vocabulary(drafter.ids))


def as_speculators(folder: Path, drafter: Known) -> Path:
    c = drafter.config
    layer = {**plain_config(c), "attention_bias": c.attention_bias, "num_aux_hidden_states": c.num_aux}
    layer["model_type"] = "qwen3" if c.qk_norm else "llama"
    if c.sliding_window is not None:  # its trainer's default since 0.9
        layer |= {"sliding_window": c.sliding_window, "use_sliding_window": True}
        layer["layer_types"] = ["sliding_attention"] * c.num_layers
    config = {
        "architectures": ["Eagle3Speculator"],
        "speculators_model_type": "eagle3",
        "speculators_version": "0.3.0",
        "draft_vocab_size": c.draft_vocab_size,
        "norm_before_residual": c.norm_before_residual,
        "norm_before_fc": c.pre_fc_norm == "concat",
        "fc_norm": c.pre_fc_norm == "per_aux",
        "norm_output": c.norm_output,
        "target_hidden_size": c.target_hidden_size,
        "eagle_aux_hidden_state_layer_ids": list(c.aux_layers),
        "transformer_layer_config": layer,
        "speculators_config": {
            "algorithm": "eagle3",
            "default_proposal_method": "greedy",
            "proposal_methods": [{"proposal_type": "greedy", "speculative_tokens": 3}],
            "verifier": {"name_or_path": "some/verifier", "architectures": ["LlamaForCausalLM"]},
        },
    }
    return save(folder, config, _names(drafter.tensors, counted) | vocabulary(drafter.ids))


def as_modelopt(folder: Path, drafter: Known) -> Path:
    config = {**plain_config(drafter.config), "architectures": ["LlamaForCausalLMEagle3"]}
    ids = [k - 1 for k in drafter.config.aux_layers]
    config["eagle_config"] = {"eagle_aux_hidden_state_layer_ids": ids, "use_aux_hidden_state": True}
    tensors = _names(drafter.tensors, lambda name: name)
    made = save(folder, config, tensors | {"d2t": vocabulary(drafter.ids)["d2t"]})
    (folder / "hf_quant_config.json").write_text(json.dumps({"producer": {"name": "modelopt"}, "quantization": {}}))
    return made


def edit(folder: Path, **changes: Any) -> Path:
    path = folder / "config.json"
    config = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not ...}))
    return folder


def config_of(folder: Path) -> Json:
    config: Json = json.loads((folder / "config.json").read_text())
    return config


def with_tensors(folder: Path, drop: str = "", **changes: Tensor) -> Path:
    """The same without the tensors that have `drop` in their names, and with `changes`."""
    path = folder / "model.safetensors"
    tensors = {n: t for n, t in load_file(path).items() if not drop or drop not in n}
    save_file({**tensors, **changes}, path)
    return folder
