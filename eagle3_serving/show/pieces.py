"""Tokens as text that a person can see: spaces, line ends, and bytes that are no text by themselves."""

import re
import unicodedata
from functools import cache
from typing import Any

from eagle3_serving.show.record import Piece

SPACE, LINE_END, TAB = "·", "⏎", "⇥"
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")  # how sentencepiece spells a byte
_NO_TEXT = "\ufffd"


class Pieces:
    """Makes a token id a `Piece`, in the words of a tokenizer of transformers."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.known: dict[int, Piece] = {}

    def of(self, token_id: int) -> Piece:
        if token_id not in self.known:
            self.known[token_id] = Piece(token_id, self._text(token_id))
        return self.known[token_id]

    def _text(self, token_id: int) -> str:
        raw = self.tokenizer.convert_ids_to_tokens(token_id)
        if raw is None:
            return f"⟨{token_id}⟩"  # an id of the model's that the tokenizer has no word for
        text: str = self.tokenizer.decode([token_id], clean_up_tokenization_spaces=False)
        if _NO_TEXT in text or not text:
            return _as_bytes(raw)
        # sentencepiece drops the space before a text's first word
        return f" {text}" if raw.startswith("▁") and not text.startswith(" ") else text


def _as_bytes(raw: str) -> str:
    """A piece of a character as its bytes, ⟨E2⟩⟨80⟩; what is no bytes either as it is spelled."""
    if whole := _BYTE.fullmatch(raw):
        return f"⟨{whole[1].upper()}⟩"
    values = _byte_of()
    if raw and all(letter in values for letter in raw):
        return "".join(f"⟨{values[letter]:02X}⟩" for letter in raw)
    return raw


@cache
def _byte_of() -> dict[str, int]:
    """The letters that stand for bytes in byte-level BPE."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    return {letter: value for value, letter in bytes_to_unicode().items()}


def visible(text: str, space: str = SPACE) -> str:
    """With nothing in it that cannot be seen or that XML forbids: controls, marks of direction, halves of surrogates."""
    return "".join(_seen(letter, space) for letter in text)


def _seen(letter: str, space: str) -> str:
    kind = unicodedata.category(letter)
    if letter == " ":
        return space
    if letter in "\n\t":
        return LINE_END if letter == "\n" else TAB
    if letter < " ":
        return chr(0x2400 + ord(letter))  # Unicode's own pictures of them
    if kind[0] == "C" or kind in ("Zl", "Zp", "Zs"):
        return f"⟨U+{ord(letter):04X}⟩"
    return letter


def cells(text: str) -> int:
    """Columns that a text takes in a fixed-width font."""
    wide = (2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in text)
    return sum(0 if unicodedata.combining(letter) else width for letter, width in zip(text, wide, strict=True))


def shortened(text: str, most: int) -> str:
    """At most so many columns, with … where something is left out."""
    if cells(text) <= most:
        return text
    kept = ""
    for letter in text:
        if cells(kept + letter) > most - 1:
            break
        kept += letter
    return kept + "…"
