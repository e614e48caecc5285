"""What an evaluation is asked to do, for every engine."""

from dataclasses import dataclass
from pathlib import Path

from eagle3_serving.dtypes import FP32_MAX
from eagle3_serving.errors import InputError

ENGINES = ("embedded", "vllm", "sglang")
MODES = ("plain", "chain", "tree", "auto")


@dataclass(frozen=True)
class EvalOptions:
    """`k` shapes a chain; `nodes`, `depth` and `top_k` a tree, and bound mode auto. `limit` keeps that many prompts of
    each family. `batch` requests are in flight at once, `repeats` rounds are timed. `profile`: a file of measured costs
    for mode auto. `proposals`, `lookup` and `calibrated` as in `engine.DecodeOptions`; `lookup` None: on in mode auto alone.
    """

    engine: str
    target: Path
    drafter: Path
    prompts: tuple[Path, ...]
    mode: str = "chain"
    k: int = 5
    nodes: int = 60
    depth: int = 8
    top_k: int = 10
    batch: int = 1
    dtype: str = "fp32"
    temperature: float = 0.0
    max_tokens: int = 128
    limit: int | None = None
    repeats: int = 1
    top_p: float = 1.0
    min_p: float = 0.0
    proposals: str = "coupled"
    lookup: bool | None = None
    calibrated: bool = True
    profile: Path | None = None

    def __post_init__(self) -> None:
        """Raises InputError naming the first option out of range."""
        for name in ("k", "nodes", "depth", "top_k", "batch", "max_tokens", "repeats"):
            if getattr(self, name) < 1:
                raise InputError(f"--{name.replace('_', '-')} is {getattr(self, name)}: it must be at least 1")
        if self.limit is not None and self.limit < 1:
            raise InputError(f"--limit is {self.limit}: it must be at least 1")
        if not 0.0 <= self.temperature <= FP32_MAX:
            raise InputError(f"--temperature is {self.temperature}: it must be finite (in fp32) and not negative")
        if not 0.0 < self.top_p <= 1.0:
            raise InputError(f"--top-p is {self.top_p}: it must be above 0 and at most 1")
        if not 0.0 <= self.min_p <= 1.0:
            raise InputError(f"--min-p is {self.min_p}: it must be between 0 and 1")
        if self.engine != "embedded" and (self.top_p, self.min_p) != (1.0, 0.0):
            raise InputError("--top-p and --min-p are for --engine embedded: a server is asked by temperature alone")

    @property
    def looks_up(self) -> bool:
        """Whether lookup's branches join the tree."""
        return self.mode == "auto" if self.lookup is None else self.lookup

    @property
    def exact(self) -> bool:
        """Whether token for token equality can be asserted: bf16 changes its rounding with the batch shape, drawn proposals
        are accepted by draws of their own, and a server's noise is its own."""
        settled = self.temperature == 0.0 or (self.engine == "embedded" and self.proposals != "drawn")
        return settled and self.dtype == "fp32"
