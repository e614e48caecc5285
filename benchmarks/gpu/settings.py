"""What a run is told: one record, read by every step from a file."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import write_json
from eagle3_serving.dtypes import short_dtype
from eagle3_serving.targets.dtypes import DTYPES


@dataclass(frozen=True)
class Settings:
    """`minutes` is the training's budget; `rate` and `siblings` the simulated acceptance (see `simulate.py`). Paths may be
    empty: the steps that need them say so. `in_flight` to `deadline` are of the real engines' steps; `deadline` 0 is the step's own limit."""

    device: str = "cuda"
    tiny: bool = False
    seed: int = 0
    target: str = ""
    drafter: str = ""
    prompts: tuple[str, ...] = ()
    eval_prompts: tuple[str, ...] = ()
    answers: tuple[str, ...] = ()
    minutes: float = 8.0
    draft_vocab: int = 8192
    ablations: tuple[str, ...] = ("no-training-time-test:ttt_steps=1",)
    rate: float = 0.8
    siblings: float = 0.75
    context: int = 512
    batches: tuple[int, ...] = (1, 2, 4, 8, 16, 24, 32, 48, 56, 64)
    tokens: int = 64
    graphs: bool = True
    engine_python: str = ""
    in_flight: tuple[int, ...] = (1, 4, 16, 64)
    pairs: tuple[str, ...] = ("shape", "real")
    contenders: tuple[str, ...] = ()
    rounds: int = 2
    graph_mode: str = ""
    attention_backend: str = ""
    engine_dtype: str = ""
    deadline: float = 0.0

    def save(self, path: Path) -> None:
        write_json(path, asdict(self))

    @classmethod
    def read(cls, path: Path) -> "Settings":
        raw: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        told: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in raw.items()}
        return cls(**told)

    @property
    def torch_device(self) -> torch.device:
        device = torch.device(self.device)
        # with its number, as tensors on it say
        return torch.device("cuda", device.index or 0) if device.type == "cuda" else device

    @property
    def dtype(self) -> torch.dtype:
        """Of what is timed: bf16 on a GPU, fp32 where bf16 is slow."""
        return torch.bfloat16 if self.torch_device.type == "cuda" else torch.float32

    @property
    def served_dtype(self) -> torch.dtype:
        """In which the real engines are served: `engine_dtype`, else `dtype`."""
        return DTYPES[short_dtype(self.engine_dtype)] if self.engine_dtype else self.dtype
