"""What a check has to say: one record a finding."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Literal

Severity = Literal["error", "silent", "unjudged", "warning", "note"]

ORDER: tuple[Severity, ...] = ("error", "silent", "unjudged", "warning", "note")


@dataclass(frozen=True)
class Finding:
    """One thing that is not as it should be.

    `severity`: error = it is broken, or the engine refuses it; silent = the engine loads it and is wrong; unjudged = right
    or wrong, it is not known here; warning = it may be accepted less; note = good to know. `engine`: whose behaviour it is,
    "any" for the checkpoint itself. `where` names the tensor or the key, `fix` the way out.
    """

    severity: Severity
    engine: str
    where: str
    what: str
    fix: str

    @property
    def breaks(self) -> bool:
        return self.severity in ("error", "silent")

    @property
    def unjudged(self) -> bool:
        return self.severity == "unjudged"

    def line(self) -> str:
        """As one line for a person: where, what, and the way out."""
        return f"{self.where}: {self.what}" + (f"; {self.fix}" if self.fix else "")

    def to_json(self) -> dict[str, str]:
        """What `--json` prints of it."""
        return asdict(self)


def verdict(found: Iterable[Finding]) -> bool | None:
    """True: right. False: not right. None: nothing is known to be wrong, and something is not judged here."""
    severities = [(finding.breaks, finding.unjudged) for finding in found]
    if any(breaks for breaks, _ in severities):
        return False
    return None if any(unjudged for _, unjudged in severities) else True
