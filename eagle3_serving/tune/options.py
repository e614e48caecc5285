"""What a tuner is asked to find out."""

from dataclasses import dataclass
from pathlib import Path

from eagle3_serving.bench.options import BenchOptions
from eagle3_serving.errors import InputError
from eagle3_serving.eval.options import ENGINES


@dataclass(frozen=True)
class TuneOptions:
    """`concurrency`: the loads, in requests in flight. `tokens` an answer, exactly so many. `traffic` empty: prompts of
    ours. `limit` prompts are asked. `repeats` rounds, whose median counts."""

    engine: str
    target: Path
    drafter: Path
    out: Path
    traffic: tuple[Path, ...] = ()
    concurrency: tuple[int, ...] = (1, 4, 16)
    tokens: int = 64
    limit: int = 16
    repeats: int = 2
    dtype: str = "fp32"
    verify: bool = False

    def __post_init__(self) -> None:
        """Raises InputError naming the first option that cannot be used."""
        if self.engine not in ENGINES:
            raise InputError(f"--engine {self.engine} is not known: one of {', '.join(ENGINES)}")
        for name, least in (("tokens", 8), ("limit", 1), ("repeats", 1)):
            if getattr(self, name) < least:
                raise InputError(f"--{name} is {getattr(self, name)}: it must be at least {least}")
        if not self.concurrency or min(self.concurrency) < 1:
            raise InputError("--concurrency: whole numbers of at least 1, with commas between")
        for role, directory in (("target", self.target), ("drafter", self.drafter)):
            if not (directory / "config.json").is_file():
                raise InputError(f"no config.json in the {role} directory {directory}")

    @property
    def loads(self) -> tuple[int, ...]:
        return tuple(sorted(set(self.concurrency)))

    def bench(self, prompts: Path, out: Path, settings: tuple[str, ...]) -> BenchOptions:
        """The same loads as `eagle3 bench` would put on the engine."""
        return BenchOptions(
            engine=self.engine,
            target=self.target,
            drafter=self.drafter,
            prompts=(prompts,),
            out=out,
            settings=settings,
            concurrency=self.loads,
            tokens=self.tokens,
            least=self.limit,
            repeats=self.repeats,
            dtype=self.dtype,
            profile=self.out,
        )
