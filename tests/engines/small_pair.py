"""A random target and a random drafter for real engines: a vocabulary so small that much of a tree is accepted, and much is not.

Engines start on it in the time of their imports, and two ranks can share its heads.
"""

from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from eagle3_serving.checkpoint import save_drafter
from eagle3_serving.drafter import Drafter, DrafterConfig

VOCAB, HEADS, KV_HEADS, HEAD_SIZE, LAYERS = 12, 4, 2, 32, 4
HIDDEN = HEADS * HEAD_SIZE
PLAIN = {"skip_tokenizer_init": True, "max_model_len": 256}  # arguments of an engine without a tokenizer
WIDE = 0.15  # of the weights: the context decides, not the last token alone


def save_pair(folder: Path, seed: int = 0) -> tuple[Path, Path]:
    """Directories of both, in fp32."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=HIDDEN,
        intermediate_size=2 * HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        max_position_embeddings=512,
        initializer_range=WIDE,
        tie_word_embeddings=False,
        eos_token_id=None,
        bos_token_id=None,
        pad_token_id=None,
    )
    LlamaForCausalLM(config).save_pretrained(folder / "target")
    drafter = Drafter(
        DrafterConfig(
            hidden_size=HIDDEN,
            intermediate_size=2 * HIDDEN,
            num_attention_heads=HEADS,
            num_key_value_heads=KV_HEADS,
            head_dim=HEAD_SIZE,
            vocab_size=VOCAB,
            draft_vocab_size=VOCAB,
            target_hidden_size=HIDDEN,
            aux_layers=(1, 2, 3),
            max_position_embeddings=512,
        )
    )
    for parameter in drafter.parameters():
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=WIDE)
    save_drafter(drafter, folder / "drafter", torch.float32)
    return folder / "target", folder / "drafter"
