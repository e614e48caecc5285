"""How many tokens were drafted and accepted: what every engine can tell."""

from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True)
class SpecCounters:
    """Counts of speculation: target passes that verified a draft, draft tokens, those accepted, in all and by position."""

    drafts: int = 0
    draft_tokens: int = 0
    accepted: int = 0
    accepted_by_position: tuple[int, ...] = ()

    def __sub__(self, earlier: Self) -> "SpecCounters":
        before = earlier.accepted_by_position + (0,) * len(self.accepted_by_position)
        by_position = tuple(now - then for now, then in zip(self.accepted_by_position, before, strict=False))
        return SpecCounters(
            self.drafts - earlier.drafts,
            self.draft_tokens - earlier.draft_tokens,
            self.accepted - earlier.accepted,
            by_position,
        )

    def __add__(self, other: Self) -> "SpecCounters":
        width = max(len(self.accepted_by_position), len(other.accepted_by_position))
        mine = self.accepted_by_position + (0,) * (width - len(self.accepted_by_position))
        theirs = other.accepted_by_position + (0,) * (width - len(other.accepted_by_position))
        return SpecCounters(
            self.drafts + other.drafts,
            self.draft_tokens + other.draft_tokens,
            self.accepted + other.accepted,
            tuple(a + b for a, b in zip(mine, theirs, strict=True)),
        )

    @property
    def accepted_length(self) -> float:
        """Tokens a verifying target pass yields, the bonus token included; 1.0 where nothing was drafted."""
        return (self.accepted + self.drafts) / self.drafts if self.drafts else 1.0
