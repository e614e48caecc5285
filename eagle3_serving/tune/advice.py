"""What a tuner says of a load, and the commands that follow."""

import shlex
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from eagle3_serving.eval.context import ByContext
from eagle3_serving.serve.server import ServerCommand

WORTH = 1.03  # less than this over plain decoding is within what a measurement errs by

NO_DRAFT = "no draft"  # the setting of a load at which nothing is drafted

QUANTITY = "tokens a second of whole requests, prefill included"


class Tuned(NamedTuple):
    """What an engine's tuner found: one advice a load, and what was accepted by tokens of context where it is told."""

    advice: list["Advice"]
    context: ByContext


@dataclass(frozen=True)
class Advice:
    """One load. Rates in `QUANTITY`; `tokens_per_second` with the drafter and the profile, as expected. `why` is one line."""

    concurrency: int
    plain_tokens_per_second: float
    tokens_per_second: float
    setting: str
    accepted_length: float
    why: str

    @property
    def speedup(self) -> float:
        return self.tokens_per_second / self.plain_tokens_per_second

    @property
    def pays(self) -> bool:
        # a gain without a draft is the machine's noise
        return self.setting != NO_DRAFT and self.speedup >= WORTH

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "speedup": self.speedup, "pays": self.pays}


def shell_line(command: ServerCommand, engine: str, port: int = 8000) -> str:
    """A server's command as a person would type it, with the variables it needs before it."""
    argv = [part.replace("{port}", str(port)) for part in command.argv]
    module = argv.index("-m") + 2
    rest = argv[module:]
    if engine == "vllm":  # the same server: `vllm serve` takes the model first
        place = rest.index("--model")
        head, rest = ["vllm", "serve", rest[place + 1]], rest[:place] + rest[place + 2 :]
    else:
        head = ["python", "-m", "sglang.launch_server"]
    settings = [f"{name}={shlex.quote(value)}" for name, value in command.environment.items()]
    return " ".join([*settings, shlex.join([*head, *rest])])
