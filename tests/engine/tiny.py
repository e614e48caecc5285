"""Tiny random targets and drafters: a vocabulary of a dozen tokens, so that a random draft is often right."""

from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from eagle3_serving.drafter import Drafter, DrafterConfig
from eagle3_serving.engine import EmbeddedEngine, Target

VOCAB = 12
# of a transformers config of any family
SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
    "eos_token_id": None,
    "bos_token_id": None,
    "pad_token_id": None,
}


def tiny_target(seed: int, layers: int = 3, hidden: int = 16, vocab: int = VOCAB) -> Target:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=32,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.3,  # wide enough that the context, not only the last token, decides
        eos_token_id=None,
        bos_token_id=None,
        pad_token_id=None,
    )
    return Target(LlamaForCausalLM(config))


def tiny_drafter(
    seed: int,
    aux_layers: tuple[int, ...] = (1, 2, 3),
    hidden: int = 16,
    vocab: int = VOCAB,
    draft_ids: tuple[int, ...] | None = None,
    layers: int = 1,
    norm_output: bool = False,
    mask_token_id: int | None = None,
    causal_head: bool = False,
) -> Drafter:
    torch.manual_seed(seed + 1000)
    config = DrafterConfig(
        hidden_size=hidden,
        intermediate_size=32,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=hidden // 4,
        vocab_size=vocab,
        draft_vocab_size=len(draft_ids) if draft_ids else vocab,
        target_hidden_size=hidden,
        aux_layers=aux_layers,
        num_layers=layers,
        norm_output=norm_output,
        mask_token_id=mask_token_id,
        causal_head=causal_head,
    )
    drafter = Drafter(config, torch.tensor(draft_ids) if draft_ids else None)
    for parameter in drafter.parameters():
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=0.3)
    if drafter.mask_hidden is not None:
        torch.nn.init.normal_(drafter.mask_hidden)
    return drafter.eval().requires_grad_(False)


def tiny_engine(seed: int, **drafter: object) -> EmbeddedEngine:
    return EmbeddedEngine(tiny_target(seed), tiny_drafter(seed, **drafter))  # type: ignore[arg-type]
