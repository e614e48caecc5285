"""Random targets and drafters for real engines: so few tokens are said that much of a tree is accepted, and much is not.

Engines start on them in the time of their imports, and two ranks can share their heads.
"""

import string
from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer
from tokenizers.decoders import Fuse
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from eagle3_serving.checkpoint import save_drafter
from eagle3_serving.drafter import Drafter, DrafterConfig

VOCAB, HEADS, KV_HEADS, HEAD_SIZE, LAYERS = 12, 4, 2, 32, 4
HIDDEN = HEADS * HEAD_SIZE
PLAIN = {"skip_tokenizer_init": True, "max_model_len": 256}  # arguments of an engine without a tokenizer
WIDE = 0.15  # of the weights: the context decides, not the last token alone
LETTERS = string.ascii_lowercase[:4]  # what the spelling target says: few, so that drafts are accepted
HEAD_WIDE = 0.6  # of the letters' rows in a head: at temperature 1 another token is drawn once in a while


def save_pair(folder: Path, seed: int = 0) -> tuple[Path, Path]:
    """Directories of target and drafter in fp32, of 12 tokens and without a tokenizer."""
    torch.manual_seed(seed)
    target = _target(VOCAB, None)
    target.save_pretrained(folder / "target")
    return folder / "target", _saved_drafter(folder / "drafter", VOCAB, range(VOCAB))


def save_spelling_pair(folder: Path, seed: int = 0) -> tuple[Path, Path]:
    """The same with a tokenizer of printable characters: a few letters and the end are said, unless a grammar asks for others."""
    tokenizer = _characters()
    letters = sorted(tokenizer.convert_tokens_to_ids(list(LETTERS)))
    end = int(tokenizer.eos_token_id)
    torch.manual_seed(seed)
    target = _target(len(tokenizer), end)
    head_VH = torch.zeros(len(tokenizer), HIDDEN)
    rows_LH = HEAD_WIDE * torch.randn(len(LETTERS) // 2 + 1, HIDDEN)
    # opposite rows: one of two is above 0, where the tokens that are not said stand together
    head_VH[letters], head_VH[end] = torch.cat([rows_LH[1:], -rows_LH[1:]]), rows_LH[0]
    with torch.no_grad():
        target.lm_head.weight.copy_(head_VH)
    target.save_pretrained(folder / "target")
    tokenizer.save_pretrained(folder / "target")
    return folder / "target", _saved_drafter(folder / "drafter", len(tokenizer), letters)


def _characters() -> PreTrainedTokenizerFast:
    """A token a printable character."""
    ids = {token: number for number, token in enumerate(("<end>", "<unknown>", *map(chr, range(32, 127))))}
    characters = Tokenizer(WordLevel(ids, unk_token="<unknown>"))
    characters.pre_tokenizer = Split(Regex("."), "isolated")
    characters.decoder = Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=characters,
        eos_token="<end>",
        unk_token="<unknown>",
        chat_template="{% for message in messages %}{{ message['content'] }}{% endfor %}",
    )


def _target(vocab: int, end: int | None) -> LlamaForCausalLM:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocab,
            hidden_size=HIDDEN,
            intermediate_size=2 * HIDDEN,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            num_key_value_heads=KV_HEADS,
            max_position_embeddings=2048,
            initializer_range=WIDE,
            tie_word_embeddings=False,
            eos_token_id=end,
            bos_token_id=None,
            pad_token_id=None,
        )
    )


def _saved_drafter(directory: Path, vocab: int, known: Sequence[int]) -> Path:
    drafter = Drafter(
        DrafterConfig(
            hidden_size=HIDDEN,
            intermediate_size=2 * HIDDEN,
            num_attention_heads=HEADS,
            num_key_value_heads=KV_HEADS,
            head_dim=HEAD_SIZE,
            vocab_size=vocab,
            draft_vocab_size=len(known),
            target_hidden_size=HIDDEN,
            aux_layers=(1, 2, 3),
            max_position_embeddings=2048,
        ),
        torch.tensor(known),
    )
    for parameter in drafter.parameters():
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=WIDE)
    save_drafter(drafter, directory, torch.float32)
    return directory
