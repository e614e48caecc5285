"""Drafters of every kind that the round trips and the engines' loaders are tried on, with who can express each."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import drafters
import torch
from drafters import Known, known
from safetensors.torch import load_file, save_file

from eagle3_serving.checkpoint.dialects import WRITABLE
from eagle3_serving.drafter import RopeConfig

ALL = frozenset(WRITABLE)
NOT_EAGLE = ALL - {"eagle"}
VLLM = frozenset({"vllm", "speculators"})


class Case(NamedTuple):
    make: Callable[[Path, Known], Path]
    drafter: Known
    dialects: frozenset[str]  # those that can express it; the others must refuse
    source: str  # the dialect that it is taken for


def absolute(folder: Path, drafter: Known) -> Path:
    drafters.as_eagle(folder, drafter)
    tensors = load_file(folder / "model.safetensors")
    save_file({**tensors, "d2t": drafters.IDS}, folder / "model.safetensors")
    return folder


def prefixed(folder: Path, drafter: Known) -> Path:
    drafters.as_eagle(folder, drafter)
    tensors = load_file(folder / "model.safetensors")
    save_file({f"model.{name}": tensor for name, tensor in tensors.items()}, folder / "model.safetensors")
    return folder


def sharded(folder: Path, drafter: Known) -> Path:
    drafters.as_vllm(folder, drafter)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    shards = {f"model-0000{1 + i}-of-00003.safetensors": names for i, names in enumerate(parts(sorted(tensors)))}
    for shard, names in shards.items():
        save_file({name: tensors[name] for name in names}, folder / shard)
    weight_map = {name: shard for shard, names in shards.items() for name in names}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def parts(names: list[str]) -> list[list[str]]:
    return [names[0::3], names[1::3], names[2::3]]


def fused(folder: Path, drafter: Known) -> Path:
    drafters.as_vllm(folder, drafter)
    tensors = load_file(folder / "model.safetensors")
    attention, mlp = "layers.0.self_attn", "layers.0.mlp"
    qkv = torch.cat([tensors.pop(f"{attention}.{x}_proj.weight") for x in "qkv"])
    gate_up = torch.cat([tensors.pop(f"{mlp}.{x}_proj.weight") for x in ("gate", "up")])
    save_file({**tensors, f"{attention}.qkv_proj.weight": qkv, f"{mlp}.gate_up_proj.weight": gate_up},
              folder / "model.safetensors")  # fmt: skip
    return folder


def headless(folder: Path, drafter: Known) -> Path:
    drafters.as_vllm(folder, drafter)
    tensors = load_file(folder / "model.safetensors")
    tensors.pop("lm_head.weight", None)
    save_file(tensors, folder / "model.safetensors")
    return folder


def tied(folder: Path, drafter: Known) -> Path:
    return drafters.edit(headless(folder, drafter), tie_word_embeddings=True)


def half(folder: Path, drafter: Known) -> Path:
    drafters.as_vllm(folder, drafter)
    tensors = {
        n: t.bfloat16() if t.is_floating_point() else t for n, t in load_file(folder / "model.safetensors").items()
    }
    save_file(tensors, folder / "model.safetensors")
    return folder


def explicit(folder: Path, drafter: Known) -> Path:
    return drafters.as_specforge(folder, drafter, explicit=True)


def sharing(drafter: Known, head: str) -> Known:
    """The same, its head the embedding ("tied") or nowhere ("target")."""
    tensors = dict(drafter.tensors)
    del tensors["lm_head.weight"]
    if head == "tied":
        tensors["lm_head.weight"] = tensors["embed_tokens.weight"]
    return drafter._replace(tensors=tensors)


def partial(folder: Path, drafter: Known) -> Path:
    """In the parameters alone, where vLLM reads it and SGLang does not."""
    rope = {"rope_theta": drafter.config.rope.theta, "rope_type": "default"}
    rope["partial_rotary_factor"] = drafter.config.rope.partial
    return drafters.edit(drafters.as_vllm(folder, drafter), rope_parameters=rope)


OTHER_IDS = {"aux_layers": (2, 5, 11)}
WHOLE = {"draft_vocab_size": drafters.VOCAB}
TIED = sharing(known(13, own_embedding=True, target_hidden_size=24, **WHOLE), "tied")
CASES: dict[str, Case] = {
    "eagle": Case(drafters.as_eagle, known(), ALL, "eagle"),
    "pickle": Case(drafters.as_eagle_pickle, known(1), ALL, "eagle"),
    "absolute d2t": Case(absolute, known(2), ALL, "eagle"),
    "model. prefix": Case(prefixed, known(3), ALL, "eagle"),
    "whole vocabulary, map written": Case(drafters.as_specforge, known(4, **WHOLE), ALL, "specforge"),
    "explicit nested ids": Case(explicit, known(5, **OTHER_IDS), NOT_EAGLE, "specforge"),
    "explicit top-level ids": Case(drafters.as_vllm, known(6, **OTHER_IDS), NOT_EAGLE, "vllm"),
    "four features": Case(drafters.as_vllm, known(7, aux_layers=(1, 4, 8, 11)), NOT_EAGLE, "vllm"),
    "last boundary": Case(drafters.as_vllm, known(8, aux_layers=(2, 6, 12)), VLLM, "vllm"),
    "sharded": Case(sharded, known(9), ALL, "vllm"),
    "fused projections": Case(fused, known(10), ALL, "vllm"),
    "bf16": Case(half, known(11), ALL, "vllm"),
    "no head": Case(headless, sharing(known(12, **WHOLE), "target"), NOT_EAGLE, "vllm"),
    "tied head": Case(tied, TIED, ALL, "vllm"),
    "three layers": Case(drafters.as_vllm, known(14, num_layers=3), NOT_EAGLE, "vllm"),
    "norm of the concatenation": Case(drafters.as_vllm, known(15, pre_fc_norm="concat"), NOT_EAGLE, "vllm"),
    "norm of each feature": Case(drafters.as_specforge, known(16, pre_fc_norm="per_aux"), NOT_EAGLE, "specforge"),
    "post-norm feedback": Case(drafters.as_vllm, known(17, norm_output=True), NOT_EAGLE, "vllm"),
    "post-norm residual": Case(drafters.as_speculators, known(18, norm_before_residual=True), VLLM, "speculators"),
    "biases": Case(drafters.as_vllm, known(19, attention_bias=True), VLLM, "vllm"),
    "qwen3": Case(drafters.as_speculators, known(20, qk_norm=True), VLLM, "speculators"),
    "other width than the target": Case(
        drafters.as_vllm, known(21, own_embedding=True, target_hidden_size=48), ALL, "vllm"
    ),
    "fc bias": Case(drafters.as_modelopt, known(22, fc_bias=True), frozenset({"sglang"}), "modelopt"),
    "sliding window": Case(drafters.as_speculators, known(24, sliding_window=256), ALL, "speculators"),
    "both norms": Case(drafters.as_vllm, known(25, pre_fc_norm="both"), NOT_EAGLE - {"speculators"}, "vllm"),
    "EAGLE-3.1": Case(
        drafters.as_specforge, known(26, pre_fc_norm="per_aux", norm_output=True), NOT_EAGLE, "specforge"
    ),
    "a part of each head": Case(partial, known(27, rope=RopeConfig(5000.0, partial=0.5)), NOT_EAGLE, "vllm"),
    "own copy of the embedding": Case(drafters.as_specforge, known(28, own_embedding=True), ALL, "specforge"),
    "head size of its own": Case(drafters.as_vllm, known(23, head_dim=16), NOT_EAGLE, "vllm"),
}
