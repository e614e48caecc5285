"""What `eagle3 tune` and `eagle3 bench` print of the sweep on vLLM: their own printing, of the raw files."""

import io
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

from rich.console import Console

from benchmarks.redraw import raw
from benchmarks.redraw.catalogue import text
from eagle3_serving.bench.table import print_points
from eagle3_serving.tune.advice import Advice
from eagle3_serving.tune.report import print_advice


@text("tune-output")
def tune_output() -> str:
    made = raw.table("sweep-vllm.tuned")
    head, _ = raw.bench("vllm")
    about = {name: head["about"][name] for name in ("engine", "dtype")}
    options = SimpleNamespace(**about, target=Path(head["about"]["target"]), tokens=made["tokens"])
    fields = Advice.__dataclass_fields__
    advice = [Advice(**{name: row[name] for name in fields}) for row in made["loads"]]
    lengths = {int(start): length for start, length in made.get("accepted_length_by_text", {}).items()}
    commands = (made["commands"]["on"], made["commands"]["off"])
    return _printed(lambda console: print_advice(options, advice, commands, (), lengths, console))  # type: ignore[arg-type]


@text("bench-output")
def bench_output() -> str:
    return _printed(lambda console: print_points(*raw.bench("vllm"), console))


def _printed(write: Callable[[Console], None]) -> str:
    """On a terminal of 80 columns without colours."""
    console = Console(file=io.StringIO(), width=80, color_system=None, force_terminal=False)
    write(console)
    said = console.file.getvalue()  # type: ignore[attr-defined]
    return "```text\n" + "\n".join(line.rstrip() for line in said.rstrip().splitlines()) + "\n```"
