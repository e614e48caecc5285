"""How many draft tokens pay at each batch size, from what steps were measured to cost and drafts to yield.

The profile is a JSON object: `about`, `acceptance` (chance that the draft token at depth 1, 2, ... is accepted, given
all before it were verified with it: unconditional, falling) and `step_seconds`: batch size -> number of draft tokens
(0 is plain decoding, without a drafter) -> seconds of one engine step. For predictions alone: `prefill`, by "plain" and
"drafting", `[seconds, seconds a prompt token]`; and `watched`, whole requests: prompt tokens, accepted drafts by step.
"""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from eagle3_serving.errors import InputError
from eagle3_serving.files import write_whole

# what drafting must promise over plain decoding before it is done: a measurement errs by about as much
MARGIN = 1.05


class Watched(NamedTuple):
    """One request: its prompt's tokens, and the drafts accepted in each of its steps."""

    prompt_tokens: int
    accepted: tuple[int, ...]


@dataclass(frozen=True)
class Profile:
    acceptance: tuple[float, ...]
    step_seconds: dict[int, dict[int, float]]
    about: dict[str, Any]
    prefill: dict[str, tuple[float, float]] = field(default_factory=dict)
    watched: tuple[Watched, ...] = ()

    @classmethod
    def read(cls, path: Path) -> "Profile":
        """Raises InputError naming the file where it is not a profile."""
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
            made = cls(
                tuple(float(a) for a in raw["acceptance"]),
                {int(b): {int(k): float(s) for k, s in row.items()} for b, row in raw["step_seconds"].items()},
                dict(raw["about"]),
                {name: (float(once), float(each)) for name, (once, each) in raw.get("prefill", {}).items()},
                tuple(Watched(int(n), tuple(map(int, accepted))) for n, accepted in raw.get("watched", ())),
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{path} is no profile ({error}): measure it with python -m eagle3_vllm.profile") from None
        seconds = [s for row in made.step_seconds.values() for s in row.values()]
        if not made.acceptance or not seconds or not all(0 in row for row in made.step_seconds.values()):
            raise InputError(f"{path} is no profile: acceptance, or a step without drafting, is missing")
        if not all(math.isfinite(s) and s > 0 for s in seconds) or not all(0 <= a <= 1 for a in made.acceptance):
            raise InputError(f"{path} is no profile: a value is out of range")
        return made

    def save(self, path: Path) -> None:
        """Beside, then renamed."""
        value = {
            "about": self.about,
            "acceptance": list(self.acceptance),
            "step_seconds": {str(b): {str(k): s for k, s in row.items()} for b, row in self.step_seconds.items()},
            "prefill": self.prefill,
            "watched": self.watched,
        }
        lines = (f"{json.dumps(key)}: {json.dumps(part)}" for key, part in value.items())
        write_whole(path, "{\n " + ",\n ".join(lines) + "\n}\n")

    def speed(self, batch: int, tokens: int) -> float:
        """Tokens a second of a request with a chain of `tokens`, over plain decoding's."""
        row = self.step_seconds[batch]
        return (1 + sum(self.acceptance[:tokens])) / row[tokens] * row[0]

    def best(self, batch: int, most: int) -> int:
        """The number of draft tokens, 0 where none gains the margin."""
        tried = [k for k in self.step_seconds[batch] if 0 < k <= most]
        best = max(tried, key=lambda k: self.speed(batch, k), default=0)
        return best if best and self.speed(batch, best) >= MARGIN else 0

    def schedule(self, most: int) -> list[tuple[int, int, int]]:
        """vLLM's `num_speculative_tokens_per_batch_size`: (first batch size, last, draft tokens), from 1 on.

        Between two sizes measured the larger one's choice holds, for a chain gains least where a batch is large; past
        the largest, its own.
        """
        entries: list[tuple[int, int, int]] = []
        first = 1
        for batch in sorted(self.step_seconds):
            entries.append((first, batch, self.best(batch, most)))
            first = batch + 1
        merged = entries[:1]
        for start, end, tokens in entries[1:]:
            if tokens == merged[-1][2]:
                merged[-1] = (merged[-1][0], end, tokens)
            else:
                merged.append((start, end, tokens))
        return merged
