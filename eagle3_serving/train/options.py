"""How a training run goes: every choice that changes its weights, each with its meaning."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from eagle3_serving.errors import InputError
from eagle3_serving.train.criterion import Criterion, Objective
from eagle3_serving.train.preset import Asked, Preset

T = TypeVar("T")


def _option(default: T, help: str) -> T:
    made: T = field(default=default, metadata={"help": help})
    return made


@dataclass(frozen=True)
class TrainOptions:
    """`tokens` counts answer tokens seen, repeats included; it sets the learning-rate curve."""

    tokens: int = _option(2_000_000, "answer tokens to see, repeats included; 0: twice what the answers hold")
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
    measure_every: int = _option(
        200_000,
        "answer tokens between two measurements of the drafter as it will be served, the best of which is kept; each replays "
        "at most a hundredth of so many (0: never)",
    )
    patience: int = _option(0, "stop after so many saves without a better held-out accepted length (0: never)")
    replay: bool = _option(True, "each fresh batch is followed by one already seen: its features cost nothing")
    bf16: bool = _option(True, "matrix products in bfloat16, twice as fast where there is hardware; weights stay fp32")
    compile: bool = _option(False, "torch.compile the draft step, for GPUs: minutes first, no faster on two CPU cores")
    seed: int = _option(0, "of the order of data and the first weights")

    def __post_init__(self) -> None:
        """Raises InputError naming the first option out of range."""
        for name in ("tokens_per_batch", "ttt_steps", "save_every", "log_every", "closed_form_batches"):
            if getattr(self, name) < 1:
                raise InputError(f"--{name.replace('_', '-')} is {getattr(self, name)}: it must be at least 1")
        if self.ttt_steps > 128:  # each keeps its activations: a slip of the finger would take all memory
            raise InputError(f"--ttt-steps is {self.ttt_steps}: at most 128, for no draft is deeper")
        for name in ("tokens", "warmup", "patience", "measure_every"):
            if getattr(self, name) < 0:
                raise InputError(f"--{name} is {getattr(self, name)}: it must not be negative")
        for name in (
            "step_decay",
            "learning_rate",
            "fusion_learning_rate",
            "weight_decay",
            "token_weight",
            "feature_weight",
        ):
            if not 0 <= getattr(self, name) < float("inf"):
                raise InputError(
                    f"--{name.replace('_', '-')} is {getattr(self, name)}: it must be finite and not negative"
                )
        if not 0 <= self.ema < 1:
            raise InputError(f"--ema is {self.ema}: it must be at least 0 and below 1")
        if not self.clip > 0:
            raise InputError(f"--clip is {self.clip}: it must be above 0 (inf clips nothing)")
        self.criterion  # noqa: B018  raises InputError

    @property
    def criterion(self) -> Criterion:
        return Criterion(self.objective, self.token_weight, self.feature_weight)


# what a drafter that is gone on from (--init) is trained with unless told: gently, and as long as the answers last
GOING_ON: dict[str, float] = {
    "tokens": 0,
    "learning_rate": 3e-4,
    "fusion_learning_rate": 5e-5,
    "measure_every": 100_000,
    "warmup": 10,
}
# and a parallel one: as deep as the tree that is served; the paper has four layers, and far more training
PARALLEL: dict[str, float] = {"ttt_steps": 8}
PARALLEL_LAYERS = 2
DRAFT_VOCAB_SIZE = 4096


@dataclass(frozen=True)
class TrainJob:
    """`prompts` are answered by the target first; `answers` are files of answers that it gave before.

    `init`: a drafter to go on from, which keeps its shape and vocabulary. `general`: answers of the families that it knew, of
    which as many are mixed in as make `general_share` of the tokens, so that it does not forget them. `answer_tokens`: the
    most that `prompts` are answered with.
    `vocabulary`: files of answers whose tokens choose the draft vocabulary (default: those trained on). `preset`: the shape of
    a new drafter by name, which `fc_norm` (a norm on each feature) and `norm_output` (the post-norm state is fed back)
    override one by one. `aux_layers`: the boundaries that it reads (default: low, middle, high); `sliding_window`: tokens
    that it looks back on (default: all); `layers` of a parallel drafter, `causal_head`: its children depend on their node's token. `eval_prompts`: what the drafter is measured on in the end (default: held-out
    answers' prompts), `eval_limit` of each family, 0 for none. `measure_tree`: depth, top-k and nodes of the tree that it is
    measured with while it is trained. `calibrate` fits a calibration on the other held-out prompts. `cache_features` keeps
    the target's features on disk, which pays where its passes are the slow part (CPUs), in `features` (default: under `out`),
    which runs may share; `watched` boundaries are kept there (default: those read). `shard_target`: under torchrun each
    process keeps a share of the target, for one that no GPU holds alone; features are then not cached, nor the drafter
    measured in the end. `shard_drafter`: each keeps a share of the drafter too, of its gradients and of the optimiser's state.
    `features_from`: the URL of a vLLM server that makes the target's passes (`eagle3 features`), and
    `features_store` the folder that it writes them into; no process then keeps the target's layers, nor is the drafter
    measured in the end.
    """

    target: Path
    out: Path
    prompts: tuple[Path, ...] = ()
    answers: tuple[Path, ...] = ()
    vocabulary: tuple[Path, ...] = ()
    init: Path | None = None
    general: tuple[Path, ...] = ()
    general_share: float = 0.5
    answer_tokens: int = 256
    draft_vocab_size: int | None = None
    preset: Preset | None = None
    fc_norm: bool | None = None
    norm_output: bool | None = None
    aux_layers: tuple[int, ...] | None = None
    sliding_window: int | None = None
    layers: int | None = None
    causal_head: bool | None = None
    max_length: int = 640
    max_prompt: int = 400
    held_out: int = 60
    limit: int | None = None
    device: str = "cpu"
    cache_features: bool = True
    features: Path | None = None
    watched: tuple[int, ...] | None = None
    cache_limit_gib: float = 50.0
    eval_prompts: tuple[Path, ...] = ()
    eval_limit: int = 8
    eval_tokens: int = 64
    measure_tree: tuple[int, int, int] = (8, 10, 60)
    calibrate: bool = False
    shard_target: bool = False
    shard_drafter: bool = False
    features_from: str | None = None
    features_store: Path | None = None
    options: TrainOptions = field(default_factory=TrainOptions)

    def __post_init__(self) -> None:
        """Raises InputError naming the first option out of range."""
        least = {"draft_vocab_size": 1, "max_length": 4, "max_prompt": 1, "eval_tokens": 1, "limit": 1}
        least |= {"answer_tokens": 3, "layers": 1}
        least |= {"held_out": 0, "eval_limit": 0, "cache_limit_gib": 0}
        for name, lowest in least.items():
            value = getattr(self, name)
            if value is not None and not value >= lowest:
                raise InputError(f"--{name.replace('_', '-')} is {value}: it must be at least {lowest}")
        aux = self.aux_layers
        if aux is not None and (not aux or min(aux) < 0 or len(set(aux)) != len(aux)):
            raise InputError(f"--aux-layers {' '.join(map(str, aux))}: they must differ, and not be negative")
        if self.sliding_window is not None and self.sliding_window < self.options.ttt_steps:
            raise InputError(
                f"--sliding-window is {self.sliding_window}: a draft of --ttt-steps would not see its own start"
            )

        if (self.features_from is None) != (self.features_store is None):
            raise InputError(
                "--features-from URL and --features-store DIR go together: the server writes into that folder"
            )
        if self.features_from is not None and self.shard_target:
            raise InputError(
                "--shard-target shares a target among processes, and with --features-from there is none: give one"
            )
        if self.shard_drafter and (self.preset == "p-eagle" or self.options.compile):
            other = "--compile" if self.options.compile else "--preset p-eagle"
            raise InputError(f"--shard-drafter is not written for {other}: leave one of them out")
        for flag, verb, said in (("--layers", "are", self.layers), ("--causal-head", "is", self.causal_head)):
            if said is not None and self.preset != "p-eagle":
                raise InputError(f"{flag} {verb} of a parallel drafter: give --preset p-eagle, or leave it out")
        if not 0 < self.general_share < 1:
            raise InputError(f"--general-share is {self.general_share}: it must be above 0 and below 1")
        if min(self.measure_tree) < 1:
            raise InputError(f"--measure-tree is {','.join(map(str, self.measure_tree))}: each must be at least 1")

    @property
    def elsewhere(self) -> bool:
        """Whether no process here has the whole target, so that nothing can be measured with it."""
        return self.shard_target or self.features_from is not None

    @property
    def asked(self) -> Asked:
        """What is asked for of the drafter's shape."""
        shape = (self.fc_norm, self.norm_output, self.aux_layers, self.sliding_window, self.draft_vocab_size)
        return Asked(self.preset, *shape, self.layers, self.causal_head)

    def require_data(self) -> None:
        """Raise InputError where there is nothing to train on."""
        if not (self.prompts or self.answers):
            raise InputError("nothing to train on: give --prompts, --answers or both")
        if self.general and self.init is None:
            raise InputError(
                "--general keeps what a drafter knew, and there is none to go on from: give --init, or the files as --answers"
            )
