"""The demonstration: the same questions to a plain server and to one with the drafter, side by side."""

import importlib.metadata
import importlib.resources
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from eagle3_serving.errors import InputError
from eagle3_serving.eval.options import EvalOptions
from eagle3_serving.eval.prompts import Prompt, by_family, read_prompts
from eagle3_serving.eval.report import EvalReport
from eagle3_serving.eval.rounds import Round, merge, summarise
from eagle3_serving.serve.client import Answer, ChatClient
from eagle3_serving.serve.side_by_side import side_by_side
from eagle3_serving.serve.vllm import VllmOptions

DEFAULT_K = 3
DEFAULT_DRAFTER = Path("checkpoints") / "smollm2-135m-instruct"
_TAIL_LINES = 12


@dataclass(frozen=True)
class DemoOptions:
    target: Path
    drafter: Path
    k: int = DEFAULT_K
    max_tokens: int = 64
    dtype: str = "fp32"


def default_drafter() -> Path:
    """The drafter that ships: of the working directory, else of the checkout, else as installed. Raises InputError."""
    for root in (Path.cwd(), Path(__file__).resolve().parent.parent):
        if (root / DEFAULT_DRAFTER / "config.json").is_file():
            return root / DEFAULT_DRAFTER
    try:
        installed = importlib.metadata.files("eagle3-serving") or []
    except importlib.metadata.PackageNotFoundError:
        installed = []
    for file in installed:  # its record alone knows where an installer puts data
        if file.match(f"{DEFAULT_DRAFTER}/config.json"):
            return Path(str(file.locate())).resolve().parent
    raise InputError(f"no drafter at {DEFAULT_DRAFTER}: run inside the repository or give --drafter DIR")


def demo_prompts() -> list[Prompt]:
    """Two prompts of each of five kinds, shipped with the package."""
    resource = importlib.resources.files("eagle3_serving").joinpath("demo_prompts.jsonl")
    with importlib.resources.as_file(resource) as path:
        return read_prompts([path])


def run_demo(options: DemoOptions, console: Console) -> EvalReport:
    """Starts both servers, asks, shows, stops both. Greedy; tokens a second include the prefill.

    Raises InputError or CheckError as the servers and the client do.
    """
    prompts = demo_prompts()
    shape = EvalOptions(
        engine="vllm",
        target=options.target,
        drafter=options.drafter,
        prompts=(),
        k=options.k,
        dtype=options.dtype,
        max_tokens=options.max_tokens,
    )
    rounds: dict[str, list[Round]] = {}
    server = VllmOptions(options.target, options.drafter, options.k, options.dtype)
    with side_by_side(server, "demo") as (plain, spec):
        for prompt in prompts:
            before = spec.counters()
            plain_answer, spec_answer = _ask_both(prompt, plain, spec, options.max_tokens, console)
            current = Round(counters=spec.counters() - before)
            current.add([plain_answer.token_ids], plain_answer.total_s, [spec_answer.token_ids], spec_answer.total_s)
            family = rounds.setdefault(prompt.family, [Round()])
            family[0] = merge([family[0], current])
    return summarise(shape, {name: len(members) for name, members in by_family(prompts).items()}, rounds)


def _ask_both(
    prompt: Prompt, plain: ChatClient, spec: ChatClient, max_tokens: int, console: Console
) -> tuple[Answer, Answer]:
    """One after the other, so that neither slows the other down."""
    question = prompt.turns[0]
    if not console.is_terminal:
        return _ask_in_turn(question, prompt.family, plain, spec, max_tokens, console)
    view = _Columns(question, prompt.family)
    with Live(view.render(), console=console, refresh_per_second=12) as live:

        def show(column: int, piece: str) -> None:
            view.texts[column] += piece
            live.update(view.render())

        answers = []
        for column, client in enumerate((plain, spec)):
            answer = client.ask(question, max_tokens, on_text=partial(show, column))
            view.notes[column] = _note(answer)
            live.update(view.render())
            answers.append(answer)
    return answers[0], answers[1]


def _ask_in_turn(
    question: str, family: str, plain: ChatClient, spec: ChatClient, max_tokens: int, console: Console
) -> tuple[Answer, Answer]:
    console.print(f"\n[{family}] {question}", markup=False, highlight=False, soft_wrap=True)
    answers = []
    for name, client in (("plain", plain), ("EAGLE-3", spec)):
        console.print(f"--- {name}: ", end="", markup=False, highlight=False)

        def show(piece: str) -> None:
            console.print(piece, end="", markup=False, highlight=False, soft_wrap=True)

        answer = client.ask(question, max_tokens, on_text=show)
        console.print(f"\n    ({_note(answer)})", markup=False, highlight=False)
        answers.append(answer)
    return answers[0], answers[1]


class _Columns:
    """The two answers as they grow; long ones show their last lines."""

    def __init__(self, question: str, family: str) -> None:
        self.question = question
        self.family = family
        self.texts = ["", ""]
        self.notes = ["", ""]

    def render(self) -> Group:
        grid = Table.grid(expand=True)
        grid.add_column(ratio=1)
        grid.add_column(ratio=1)
        panels = [
            Panel(
                Text("\n".join(text.splitlines()[-_TAIL_LINES:])),
                title=title,
                subtitle=note,
                height=_TAIL_LINES + 2,
            )
            for text, title, note in zip(self.texts, ("plain", "EAGLE-3"), self.notes, strict=True)
        ]
        grid.add_row(*panels)
        return Group(Text(f"{self.family}: {self.question}", style="bold"), grid)


def _note(answer: Answer) -> str:
    return (
        f"{len(answer.token_ids)} tokens in {answer.total_s:.1f} s, {len(answer.token_ids) / answer.total_s:.1f} tok/s"
    )
