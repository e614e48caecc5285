"""What the writers share: the keys that every reader takes alike, tensors under other names, the vocabulary's tensors."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from eagle3_serving.checkpoint import rope
from eagle3_serving.checkpoint.aux_layers import default_aux_layers
from eagle3_serving.checkpoint.dialects.base import Tensors
from eagle3_serving.checkpoint.facts import TargetFacts
from eagle3_serving.checkpoint.neutral import Neutral
from eagle3_serving.checkpoint.source import Json, computed, in_memory
from eagle3_serving.drafter.config import DrafterConfig

# an embedding that is this near to the target's is a copy of it that was cast, padded or trained on a little: either serves
LITTLE = 0.1


def layer_keys(config: DrafterConfig, dtype: str) -> Json:
    """The decoder layer, under the names of transformers' Llama and Qwen3."""
    return {
        "model_type": "qwen3" if config.qk_norm else "llama",
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "hidden_act": config.hidden_act,
        "rms_norm_eps": config.rms_norm_eps,
        "max_position_embeddings": config.max_position_embeddings,
        **rope.encode(config.rope),
        **_window_keys(config),
        "attention_bias": config.attention_bias,
        "mlp_bias": config.mlp_bias,
        "vocab_size": config.vocab_size,
        "tie_word_embeddings": False,
        "dtype": dtype,
        "torch_dtype": dtype,
    }


def _window_keys(config: DrafterConfig) -> Json:
    if config.sliding_window is None:
        return {}
    kinds = ["sliding_attention"] * config.num_layers
    return {"sliding_window": config.sliding_window, "use_sliding_window": True, "layer_types": kinds}


def drafter_keys(config: DrafterConfig) -> Json:
    """What makes the layer a drafter, for readers that take these keys at the top level (vLLM and SGLang)."""
    return {
        "target_hidden_size": config.target_hidden_size,
        "draft_vocab_size": config.draft_vocab_size,
        "norm_before_residual": config.norm_before_residual,
        "norm_before_fc": config.norms_concatenation,
        "fc_norm": config.norms_features,
        "norm_output": config.norm_output,
        "num_aux_hidden_states": config.num_aux,
    }


def named(neutral: Neutral, rename: Callable[[str], str]) -> Tensors:
    """Every parameter and scale under the name that `rename` gives to the Drafter's."""
    return {rename(name): tensor for name, tensor in (neutral.tensors | neutral.scales).items()}


def vocabulary(neutral: Neutral, masked: bool = True) -> Tensors:
    """`d2t` [Vd] int64 offsets and `t2d` [Vt] bool; nothing where every token can be drafted in its own place."""
    ids = neutral.target_ids
    if ids is None:
        return {}
    found: Tensors = {"d2t": in_memory("d2t", ids - torch.arange(len(ids)))}
    if masked:
        vocab = neutral.config.vocab_size
        found["t2d"] = computed("t2d", torch.bool, (vocab,), lambda: _mask(ids, vocab))
    return found


def _mask(ids: Tensor, vocab: int) -> Tensor:
    return torch.zeros(vocab, dtype=torch.bool).index_fill_(0, ids, True)


def is_default(neutral: Neutral, facts: TargetFacts) -> bool:
    """Whether the auxiliary layers are those that every reader takes without ids; the target's depth must tell."""
    if neutral.aux.default:
        return True
    return facts.num_layers is not None and neutral.config.aux_layers == default_aux_layers(facts.num_layers)


def unlike_target(neutral: Neutral, facts: TargetFacts) -> float:
    """How far the drafter's own embedding is from the target's: the norm of the difference as a part of the target's norm;
    0 where they are equal or one of them is not known."""
    own, target = neutral.tensors.get("embed_tokens.weight"), facts.embedding
    if own is None or target is None or len(own.shape) != 2:
        return 0.0
    if own.shape != target.shape:
        return math.inf
    apart = whole = 0.0
    for start, stop in own.spans():
        there = target.rows(start, stop).to(own.dtype).float()
        apart += float((own.rows(start, stop).float() - there).double().square().sum())
        whole += float(there.double().square().sum())
    return math.sqrt(apart / whole) if whole else math.inf if apart else 0.0
