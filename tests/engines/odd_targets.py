"""Tiny targets of many kinds with random weights, and a drafter for all of them: eight tokens, so that a random draft is often
right. Quantised checkpoints are drawn as such: integers are as random as weights would be.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from eagle3_serving.checkpoint.save import dialect_for, save_drafter
from eagle3_serving.drafter import Drafter, DrafterConfig

VOCAB, HIDDEN, LAYERS, HEAD = 8, 128, 4, 32
WINDOW = 32
SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": HIDDEN,
    "intermediate_size": 128,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": HEAD,
    "initializer_range": 0.3,  # wide enough that the context, not only the last token, decides
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
    "eos_token_id": None,
    "bos_token_id": None,
    "pad_token_id": None,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64, "norm_topk_prob": True}
MIXED = ["sliding_attention", "full_attention"] * (LAYERS // 2)

Kind = tuple[str, str, dict[str, Any]]  # class of the config, of the model, and what differs from SIZES
KINDS: dict[str, Kind] = {
    "llama": ("LlamaConfig", "LlamaForCausalLM", {}),
    "as many key heads as query heads": ("LlamaConfig", "LlamaForCausalLM", {"num_key_value_heads": 4}),
    "eight query heads a key head": (
        "LlamaConfig",
        "LlamaForCausalLM",
        {"num_attention_heads": 8, "num_key_value_heads": 1},
    ),
    "experts, four query heads a key head": (
        "Qwen3MoeConfig",
        "Qwen3MoeForCausalLM",
        {**EXPERTS, "num_key_value_heads": 1},
    ),
    "experts, eight query heads a key head": (
        "Qwen3MoeConfig",
        "Qwen3MoeForCausalLM",
        {**EXPERTS, "num_attention_heads": 8, "num_key_value_heads": 1},
    ),
    "windows in all layers": ("MistralConfig", "MistralForCausalLM", {"sliding_window": WINDOW}),
    "windows in some layers": ("LlamaConfig", "LlamaForCausalLM", {"sliding_window": WINDOW, "layer_types": MIXED}),
    "mixtral": ("MixtralConfig", "MixtralForCausalLM", {"num_local_experts": 4, "sliding_window": None}),
}


def drawn(folder: Path, kind: str) -> Path:
    """A target of `KINDS`, saved by transformers."""
    config_type, model_type, changed = KINDS[kind]
    torch.manual_seed(0)
    config = getattr(transformers, config_type)(**{**SIZES, **changed})
    getattr(transformers, model_type)(config).save_pretrained(folder)
    return folder


def drawn_drafter(folder: Path, window: int | None = None, masks: bool = False, causal_head: bool = False) -> Path:
    """For any of these targets: they have one width and one vocabulary. `window`: tokens that it looks back on; `masks`: a
    parallel one."""
    torch.manual_seed(1)
    config = DrafterConfig(
        hidden_size=HIDDEN,
        intermediate_size=64,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=HEAD,
        vocab_size=VOCAB,
        draft_vocab_size=VOCAB,
        target_hidden_size=HIDDEN,
        aux_layers=(1, 2, 3),
        max_position_embeddings=512,
        sliding_window=window,
        mask_token_id=0 if masks else None,
        causal_head=causal_head,
    )
    drafter = Drafter(config, None)
    if drafter.mask_hidden is not None:
        torch.nn.init.normal_(drafter.mask_hidden)
    for name, parameter in drafter.named_parameters():
        if parameter.dim() == 2:  # a small head makes all tokens about as likely, so that trees are broad
            torch.nn.init.normal_(parameter, std=0.02 if name.startswith("lm_head") else 0.3)
    save_drafter(drafter, folder, torch.float32, to=dialect_for(drafter))
    return folder


# quantised checkpoints, made of a Llama's


def quantised(folder: Path, method: str) -> Path:
    """One of `METHODS`. Embedding, norms and head stay as they are."""
    settings, write = METHODS[method]
    drawn(folder, "llama")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": settings}))
    tensors: dict[str, Tensor] = {}
    generator = torch.Generator().manual_seed(1)
    for name, tensor in load_file(folder / "model.safetensors").items():
        if name.endswith("_proj.weight"):
            made = write(tensor, generator)
            tensors |= {f"{name.removesuffix('weight')}{part}": value.contiguous() for part, value in made.items()}
        else:
            tensors[name] = tensor
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


GROUP = 32
STEP = 0.05  # of what four bits count in


def _integers(*shape: int, generator: torch.Generator) -> Tensor:
    return torch.randint(-(2**31), 2**31, shape, dtype=torch.int64, generator=generator).to(torch.int32)


def _awq(weight_OI: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
    out, inner = weight_OI.shape
    return {
        "qweight": _integers(inner, out // 8, generator=generator),
        "scales": torch.full((inner // GROUP, out), STEP),
        "qzeros": torch.full((inner // GROUP, out // 8), 0x77777777, dtype=torch.int32),
    }


def _packed(weight_OI: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
    out, inner = weight_OI.shape
    return {
        "weight_packed": _integers(out, inner // 8, generator=generator),
        "weight_scale": torch.full((out, inner // GROUP), STEP),
        "weight_shape": torch.tensor([out, inner]),
    }


def _fp8(weight_OI: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
    scale_O1 = weight_OI.abs().amax(1, keepdim=True) / 448
    return {"weight": (weight_OI / scale_O1).to(torch.float8_e4m3fn), "weight_scale": scale_O1}


def _int8(weight_OI: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
    scale_O1 = weight_OI.abs().amax(1, keepdim=True) / 127
    return {"weight": (weight_OI / scale_O1).round().to(torch.int8), "weight_scale": scale_O1}


def _compressed(form: str, weights: dict[str, Any], inputs: dict[str, Any] | None) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": weights, "input_activations": inputs, "output_activations": None}
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "config_groups": {"group_0": group},
    }


def _numbers(bits: int, kind: str, strategy: str, dynamic: bool = False, **more: Any) -> dict[str, Any]:
    return {"num_bits": bits, "type": kind, "strategy": strategy, "symmetric": True, "dynamic": dynamic, **more}


Write = Callable[[Tensor, torch.Generator], dict[str, Tensor]]
METHODS: dict[str, tuple[dict[str, Any], Write]] = {
    "awq": (
        {"quant_method": "awq", "bits": 4, "group_size": GROUP, "zero_point": True, "version": "gemm"},
        _awq,
    ),
    "w4a16": (_compressed("pack-quantized", _numbers(4, "int", "group", group_size=GROUP), None), _packed),
    "fp8": (
        _compressed("float-quantized", _numbers(8, "float", "channel"), _numbers(8, "float", "token", dynamic=True)),
        _fp8,
    ),
    "int8": (
        _compressed("int-quantized", _numbers(8, "int", "channel"), _numbers(8, "int", "token", dynamic=True)),
        _int8,
    ),
}


def drawn_adapter(folder: Path, rank: int = 8) -> Path:
    """A LoRA adapter of the attention of a target of ours with two key heads, as PEFT writes it."""
    generator = torch.Generator().manual_seed(7)
    folder.mkdir(parents=True)
    config = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": 4 * rank,
        "target_modules": ["q_proj", "v_proj"],
        "bias": "none",
    }
    (folder / "adapter_config.json").write_text(
        json.dumps({**config, "task_type": "CAUSAL_LM", "base_model_name_or_path": ""})
    )
    tensors = {}
    for layer in range(LAYERS):
        for name, out in (("q_proj", 4 * HEAD), ("v_proj", 2 * HEAD)):
            prefix = f"base_model.model.model.layers.{layer}.self_attn.{name}"
            tensors[f"{prefix}.lora_A.weight"] = torch.randn(rank, HIDDEN, generator=generator) * 0.2
            tensors[f"{prefix}.lora_B.weight"] = torch.randn(out, rank, generator=generator) * 0.2
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    return folder
