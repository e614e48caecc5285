"""What is counted, on its way to vLLM's own Prometheus endpoint."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Tally:
    """Counts of one worker since it was last read. `accepted` and `verified` draft tokens, `passes` requests' verify
    passes, `budget` nodes chosen, `chains` requests that were drafted a chain, by reason."""

    passes: int = 0
    verified: int = 0
    accepted: int = 0
    budget: int = 0
    chains: Counter[str] = field(default_factory=Counter)

    def add(self, batch: Any, num_sampled: Any) -> None:
        """One verify pass."""
