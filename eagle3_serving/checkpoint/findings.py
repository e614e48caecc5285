"""What a check has to say: one record a finding."""

from dataclasses import asdict, dataclass
from typing import Literal

Severity = Literal["error", "silent", "warning", "note"]

ORDER: tuple[Severity, ...] = ("error", "silent", "warning", "note")


@dataclass(frozen=True)
class Finding:
    """One thing that is not as it should be.

    `severity`: error = it is broken, or the engine refuses it; silent = the engine loads it and is wrong; warning =
    it may be wrong; note = good to know. `engine`: whose behaviour it is, "any" for the checkpoint itself. `where` names
    the tensor or the key, `fix` the way out.
    """

    severity: Severity
    engine: str
    where: str
    what: str
    fix: str

    @property
    def breaks(self) -> bool:
        return self.severity in ("error", "silent")

    def line(self) -> str:
        return f"{self.where}: {self.what}" + (f"; {self.fix}" if self.fix else "")

    def to_json(self) -> dict[str, str]:
        return asdict(self)
