"""How a training run goes: every choice that changes its weights, each with its meaning."""

from dataclasses import dataclass, field
from typing import TypeVar

from eagle3_serving.errors import InputError
from eagle3_serving.train.objectives import Criterion, Objective

T = TypeVar("T")


def _option(default: T, help: str) -> T:
    made: T = field(default=default, metadata={"help": help})
    return made


@dataclass(frozen=True)
class TrainOptions:
    """`tokens` counts answer tokens seen, repeats included; it sets the learning-rate curve."""

    tokens: int = _option(2_000_000, "answer tokens to see, repeats included")
    tokens_per_batch: int = _option(2048, "rows of a batch, prompts and padding included")
    ttt_steps: int = _option(4, "steps of the training-time test: how far the drafter is unrolled on its own output")
    step_decay: float = _option(0.8, "weight of a step's loss against the step before")
    objective: Objective = _option(  # noqa: RUF009  a frozen string
        "cross-entropy",
        "token loss: soft cross-entropy (the paper's), total-variation (1 - chance of acceptance of a draw), or "
        "acceptance (-log of that chance)",
    )
    token_weight: float = _option(1.0, "weight of the token loss")
    feature_weight: float = _option(
        0.0, "weight of a regression of the draft state on the target's final state; EAGLE-1/2 train with 1, tokens 0.1"
    )
    keep_feature: bool = _option(
        False, "EAGLE-1/2's state: `fc` is fitted to the target's final state and frozen (closed-form start only)"
    )
    learning_rate: float = _option(4e-4, "peak, after warm-up; cosine to 5%% of it")
    fusion_learning_rate: float = _option(1e-4, "peak for `fc`, which the closed form sets; 1e-3 was seen to damage it")
    weight_decay: float = _option(0.0, "AdamW's")
    clip: float = _option(0.5, "largest norm of the gradients")
    warmup: int = _option(30, "steps of warm-up")
    ema: float = _option(0.99, "decay of the average of weights that is saved in the end")
    closed_form_batches: int = _option(32, "batches that the closed-form start and the features' scale are fitted on")
    save_every: int = _option(100, "steps between two saves, each with held-out figures")
    log_every: int = _option(10, "steps between two lines of the log")
    patience: int = _option(0, "stop after so many saves without a better held-out accepted length (0: never)")
    replay: bool = _option(True, "each fresh batch is followed by one already seen: its features cost nothing")
    bf16: bool = _option(True, "matrix products in bfloat16, twice as fast where there is hardware; weights stay fp32")
    compile: bool = _option(False, "torch.compile the draft step, for GPUs: minutes first, no faster on two CPU cores")
    seed: int = _option(0, "of the order of data and the first weights")

    def __post_init__(self) -> None:
        """Raises InputError naming the first option out of range."""
        for name in ("tokens", "tokens_per_batch", "ttt_steps", "save_every", "log_every", "closed_form_batches"):
            if getattr(self, name) < 1:
                raise InputError(f"--{name.replace('_', '-')} is {getattr(self, name)}: it must be at least 1")
        for name in ("warmup", "patience"):
            if getattr(self, name) < 0:
                raise InputError(f"--{name} is {getattr(self, name)}: it must not be negative")
        self.criterion  # noqa: B018  raises InputError

    @property
    def criterion(self) -> Criterion:
        return Criterion(self.objective, self.token_weight, self.feature_weight)
