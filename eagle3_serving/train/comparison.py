"""What going on from a drafter was worth: tokens a pass before and after, by family, on the same recorded answers."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from eagle3_serving.engine import EmbeddedEngine, Target
from eagle3_serving.engine.pair import load_for
from eagle3_serving.eval.replay import RecordedTarget
from eagle3_serving.train.features import Extract
from eagle3_serving.train.mixture import Families
from eagle3_serving.train.served import Lengths, accepted_lengths, settings
from eagle3_serving.tree.calibrate import Calibration


@dataclass(frozen=True)
class Comparison:
    """Accepted length by mode and family. `own`: the families that were trained for; the others are to stay as they were."""

    before: Lengths
    after: Lengths
    own: tuple[str, ...]

    def gain(self, mode: str, own: bool) -> float | None:
        """Mean over those families; None where there is none."""
        gains = [
            self.after[mode][name] - length for name, length in self.before[mode].items() if (name in self.own) == own
        ]
        return sum(gains) / len(gains) if gains else None

    @property
    def heads(self) -> list[str]:
        return ["", *(heading for mode in self.before for heading in (f"{mode} before", "after", "change"))]

    def rows(self) -> list[list[str]]:
        """Family, and for each mode before, after and the difference; the families trained for first."""
        names = sorted(next(iter(self.before.values())), key=lambda name: name not in self.own)
        return [
            [
                f"{name} (trained for)" if name in self.own else name,
                *(cell for mode in self.before for cell in _cells(self.before[mode][name], self.after[mode][name])),
            ]
            for name in names
        ]

    def table(self) -> list[str]:
        """Lines of Markdown."""
        heads = self.heads
        rows = [heads, ["---", *["---:"] * (len(heads) - 1)], *self.rows()]
        return [f"| {' | '.join(row)} |" for row in rows]


def print_comparison(comparison: Comparison) -> None:
    """The table for a person, and what it comes to."""
    table = Table(title="tokens a target pass, before and after", title_justify="left")
    for number, heading in enumerate(comparison.heads):
        table.add_column(heading, justify="right" if number else "left")
    for row in comparison.rows():
        table.add_row(*row)
    Console().print(table)


def _cells(before: float, after: float) -> tuple[str, str, str]:
    return f"{before:.2f}", f"{after:.2f}", f"{after - before:+.2f}"


class Comparer:
    """Measures drafters as they lie on disk, each with the calibration beside it, on one recording."""

    def __init__(
        self,
        target: Target,
        aux_layers: Sequence[int],
        families: Families,
        tree: tuple[int, int, int],
        extract: Extract,
    ) -> None:
        """`extract`: where the target's features at `aux_layers` come from, which all these drafters read."""
        self.target, self.families = target, families
        everything = [answer for family in families.values() for answer in family]
        self.recorded = RecordedTarget(target, aux_layers, everything, extract)
        self.settings = settings(max(len(answer.response_ids) for answer in everything), tree)

    def __call__(self, directory: Path) -> Lengths:
        drafter = load_for(self.target, directory)
        engine = EmbeddedEngine(self.recorded, drafter, Calibration.beside(directory))
        return accepted_lengths(engine, self.families, self.settings)
