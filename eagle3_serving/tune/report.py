"""A tuner's findings for a person at a terminal."""

from collections.abc import Mapping, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from eagle3_serving.eval.context import length_line
from eagle3_serving.tune.advice import QUANTITY, Advice
from eagle3_serving.tune.options import TuneOptions
from eagle3_serving.tune.verify import Verified


def print_advice(
    options: TuneOptions,
    advice: Sequence[Advice],
    commands: tuple[str, str],
    verified: Sequence[Verified],
    accepted_length_by_text: Mapping[int, float],
    console: Console,
) -> None:
    kind = "measured in short rounds" if options.engine == "embedded" else "expected"
    title = f"{options.engine}, {options.target.name}, {options.dtype}: {kind}, {options.tokens} tokens an answer"
    table = Table(box=SIMPLE_HEAD, pad_edge=False, title=title, title_justify="left")
    for heading in ("load", "plain tok/s", "tok/s", "speedup", "setting", "accept", "advice"):
        table.add_column(heading, justify="left" if heading in ("setting", "advice") else "right", no_wrap=True)
    for one in advice:
        table.add_row(
            str(one.concurrency),
            f"{one.plain_tokens_per_second:.1f}",
            f"{one.tokens_per_second:.1f}",
            f"{one.speedup:.2f}x",
            one.setting,
            f"{one.accepted_length:.2f}",
            "use it" if one.pays else "leave it off",
        )
    console.print(table)
    for one in advice:
        console.print(f"{one.concurrency} in flight: {one.why}", highlight=False, soft_wrap=True)
    console.print(f"Speedup: {QUANTITY}, over plain decoding's. accept: tokens a target pass.", style="dim")
    if line := length_line(accepted_length_by_text):
        console.print(line, highlight=False, soft_wrap=True)
    print_commands(advice, commands, console)
    for two in verified:
        low, high = two.measured_range
        console.print(
            f"{two.concurrency} in flight: predicted {two.predicted:.2f}x, measured {two.measured:.2f}x ({low:.2f}-{high:.2f}), "
            f"{two.percent:+.1f}%",
            highlight=False,
        )


def print_commands(advice: Sequence[Advice], commands: tuple[str, str], console: Console) -> None:
    """One server follows all loads by its profile; where it gains nothing, the plain one."""
    for pays, command in zip((True, False), commands, strict=True):
        loads = ", ".join(str(one.concurrency) for one in advice if one.pays == pays)
        if loads:
            what = "use it" if pays else "leave it off"
            console.print(f"\nAt {loads} in flight {what}:", highlight=False)
            console.print(command, highlight=False, soft_wrap=True, markup=False)
