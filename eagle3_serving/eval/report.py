"""What an evaluation found: the figures of each family and overall, as JSON and as a table."""

from dataclasses import dataclass, field

from rich.console import Console
from rich.table import Table

from eagle3_serving.eval.context import length_json, length_line
from eagle3_serving.eval.law import LawTest


@dataclass(frozen=True)
class Rate:
    """Tokens a second: the median over the rounds, and the slowest and fastest round."""

    median: float
    low: float
    high: float

    def to_json(self) -> list[float]:
        return [round(self.low, 2), round(self.high, 2)]


@dataclass(frozen=True)
class Figures:
    """One family, or all of them.

    `accepted_length`: tokens a target pass yields, the bonus token included (plain decoding: 1).
    `acceptance_by_position`: of all drafts, the share whose token at that position was accepted.
    `accepted_length_by_text`: that of verify passes by where in the text they stood, prompt included, by where a stretch
    of it begins; empty where an engine does not tell.
    `speedup`: median over the rounds of speculative over plain tokens a second.
    `identical`: every token id equals plain decoding's; None where that cannot be asserted (not fp32; at T > 0 a
    server, or drawn proposals).
    """

    prompts: int
    identical: bool | None
    accepted_length: float
    acceptance_by_position: tuple[float, ...]
    accepted_length_by_text: dict[int, float]
    speedup: float
    tokens_per_second: Rate
    plain_tokens_per_second: Rate

    def to_json(self) -> dict[str, object]:
        return {
            "identical": self.identical,
            "accepted_length": round(self.accepted_length, 3),
            "speedup": round(self.speedup, 3),
            "tokens_per_second": round(self.tokens_per_second.median, 2),
            "plain_tokens_per_second": round(self.plain_tokens_per_second.median, 2),
            "acceptance_by_position": [round(rate, 4) for rate in self.acceptance_by_position],
            "accepted_length_by_text": length_json(self.accepted_length_by_text),
            "prompts": self.prompts,
            "tokens_per_second_range": self.tokens_per_second.to_json(),
            "plain_tokens_per_second_range": self.plain_tokens_per_second.to_json(),
        }


@dataclass(frozen=True)
class EvalReport:
    engine: str
    mode: str
    batch: int
    dtype: str
    temperature: float
    overall: Figures
    families: dict[str, Figures]
    settings: dict[str, object] = field(default_factory=dict)
    law: LawTest | None = None  # None at temperature 0

    def to_json(self) -> dict[str, object]:
        return {
            "engine": self.engine,
            "mode": self.mode,
            "batch": self.batch,
            "dtype": self.dtype,
            "temperature": self.temperature,
            **self.overall.to_json(),
            **self.settings,
            "law": None if self.law is None else self.law.to_json(),
            "families": {name: figures.to_json() for name, figures in self.families.items()},
        }


def print_report(report: EvalReport, console: Console) -> None:
    title = f"{report.engine}, {report.mode}, batch {report.batch}, {report.dtype}, T={report.temperature:g}"
    table = Table(title=title, title_justify="left")
    for heading in (
        "family",
        "prompts",
        "plain tok/s",
        "EAGLE-3 tok/s",
        "speedup",
        "accepted length",
        "identical",
    ):
        table.add_column(heading, justify="left" if heading == "family" else "right")
    for name, figures in report.families.items():
        table.add_row(name, *_cells(figures))
    table.add_section()
    table.add_row("all", *_cells(report.overall), style="bold")
    console.print(table)
    rates = "  ".join(f"{i}: {rate:.0%}" for i, rate in enumerate(report.overall.acceptance_by_position, 1))
    if rates:
        console.print(f"accepted by draft position  {rates}")
    if report.law is not None:
        console.print(f"sampled by the target's law  {report.law}")
    if line := length_line(report.overall.accepted_length_by_text):
        console.print(line, highlight=False, soft_wrap=True)


def _cells(figures: Figures) -> list[str]:
    return [
        str(figures.prompts),
        _rate(figures.plain_tokens_per_second),
        _rate(figures.tokens_per_second),
        f"{figures.speedup:.2f}x",
        f"{figures.accepted_length:.2f}",
        {True: "yes", False: "NO", None: "-"}[figures.identical],
    ]


def _rate(rate: Rate) -> str:
    if rate.low == rate.high:
        return f"{rate.median:.1f}"
    return f"{rate.median:.1f} ({rate.low:.1f}-{rate.high:.1f})"
