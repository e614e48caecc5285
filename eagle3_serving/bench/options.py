"""What a sweep is asked to do."""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eagle3_serving.bench.setting import DEFAULTS, Setting, parse_setting
from eagle3_serving.dtypes import FP32_MAX
from eagle3_serving.errors import InputError
from eagle3_serving.eval.options import ENGINES

CONCURRENCY = (1, 2, 4, 8, 16, 24, 32, 48, 56, 64)


@dataclass(frozen=True)
class BenchOptions:
    """`settings` empty: the engine's usual ones. `tokens` an answer, exactly so many unless `natural_end`. `least`
    requests a cell at low concurrency. `urls`: a running server for a setting, in place of one started here.
    `simulate`: the engine's own simulated acceptance at this rate a depth. `profile`: what auto decides by.
    """

    engine: str
    target: Path
    drafter: Path
    prompts: tuple[Path, ...]
    out: Path
    settings: tuple[str, ...] = ()
    concurrency: tuple[int, ...] = CONCURRENCY
    temperatures: tuple[float, ...] = (0.0,)
    tokens: int = 64
    natural_end: bool = False
    least: int = 8
    repeats: int = 3
    limit: int | None = None
    dtype: str = "fp32"
    urls: dict[str, str] = field(default_factory=dict)
    simulate: float | None = None
    profile: Path | None = None
    engine_args: tuple[str, ...] = ()
    timeout_s: float = 600.0

    def __post_init__(self) -> None:
        """Raises InputError naming the first option out of range."""
        if self.engine not in ENGINES:
            raise InputError(f"--engine {self.engine} is not known: one of {', '.join(ENGINES)}")
        for name in ("tokens", "least", "repeats"):
            if getattr(self, name) < 1:
                raise InputError(f"--{name} is {getattr(self, name)}: it must be at least 1")
        if not self.concurrency or min(self.concurrency) < 1:
            raise InputError("--concurrency: whole numbers of at least 1, with commas between")
        if not all(0.0 <= t <= FP32_MAX for t in self.temperatures) or not self.temperatures:
            raise InputError("--temperature: numbers of at least 0, with commas between")
        if not 0.0 < self.timeout_s < float("inf"):
            raise InputError(f"--timeout is {self.timeout_s}: seconds, above 0")
        if self.simulate is not None and not 0.0 <= self.simulate <= 1.0:
            raise InputError(f"--simulate-acceptance is {self.simulate}: it must be between 0 and 1")
        if self.simulate is not None and self.engine == "embedded":
            raise InputError("--simulate-acceptance is the engines' own: use --engine vllm or sglang")
        chosen = self.chosen
        if "plain" not in {setting.name for setting in chosen}:
            raise InputError("--settings must hold plain: every ratio is to it")
        if len({setting.name for setting in chosen}) != len(chosen):
            raise InputError("--settings names one twice")
        if unknown := sorted(self.urls.keys() - {setting.name for setting in chosen}):
            raise InputError(f"--url names {unknown[0]}, which is not among the settings")
        if self.urls and self.engine == "embedded":
            raise InputError("--url is for servers; the embedded engine has none")

    @property
    def chosen(self) -> list[Setting]:
        return [parse_setting(name, self.engine) for name in self.settings or DEFAULTS[self.engine]]

    @property
    def exact(self) -> bool:
        """Whether answers at temperature 0 can be held against plain decoding's."""
        return self.dtype == "fp32" and self.simulate is None

    def about(self, prompts: list[str]) -> dict[str, Any]:
        """What must be the same for a stopped sweep to go on in its file."""
        digest = hashlib.sha256("\0".join(prompts).encode()).hexdigest()[:12]
        return {
            "engine": self.engine,
            "target": self.target.name,
            "drafter": self.drafter.name,
            "dtype": self.dtype,
            "tokens": self.tokens,
            "natural_end": self.natural_end,
            "least": self.least,
            "prompts": digest,
            "simulated_acceptance": self.simulate,
        }
