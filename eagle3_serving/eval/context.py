"""What is accepted by where in the text a verify pass stands: near the beginning, or behind thousands of tokens."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

FIRST = 512  # tokens of the first stretch; each later one begins where the text has doubled


def stretch_of(tokens: int) -> int:
    """Where the stretch begins in which a text of `tokens` ends: 0, 512, 1024, 2048, 4096 and so on."""
    return 0 if tokens < FIRST else 1 << (tokens.bit_length() - 1)


@dataclass
class ByContext:
    """Verify passes and the draft tokens they accepted, by stretch of text, prompt included."""

    passes: Counter[int] = field(default_factory=Counter)
    accepted: Counter[int] = field(default_factory=Counter)

    def place(self, start: int, accepted: Iterable[int]) -> None:
        """Draft tokens accepted by the verify passes of one answer, the first of which stood behind `start` tokens."""
        for count in accepted:
            stretch = stretch_of(start)
            self.passes[stretch] += 1
            self.accepted[stretch] += count
            start += 1 + count

    def __iadd__(self, other: "ByContext") -> "ByContext":
        self.passes += other.passes
        self.accepted += other.accepted
        return self

    def lengths(self) -> dict[int, float]:
        """Tokens a pass yields, the bonus token included, by where a stretch begins."""
        return {start: 1 + self.accepted[start] / passes for start, passes in sorted(self.passes.items())}


def span(start: int) -> str:
    """A stretch as a person reads it: 512-1K."""
    return f"{_short(start)}-{_short(2 * start or FIRST)}"


def length_json(lengths: Mapping[int, float]) -> dict[str, float]:
    return {str(start): round(length, 3) for start, length in lengths.items()}


def length_line(lengths: Mapping[int, float]) -> str:
    """For a person, "" where nothing was told."""
    stretches = "  ".join(f"{span(start)}: {length:.2f}" for start, length in lengths.items())
    return f"accepted length by tokens of context  {stretches}" if stretches else ""


def _short(tokens: int) -> str:
    return f"{tokens // 1024}K" if tokens >= 1024 else str(tokens)
