"""The training run: batches in, a drafter out; resumable after a kill at any point."""

import json
import math
import random
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor
from tqdm import tqdm

from eagle3_serving.drafter.layers import weight_of
from eagle3_serving.drafter.model import Drafter
from eagle3_serving.engine.target import Target
from eagle3_serving.errors import InputError
from eagle3_serving.train.closed_form import aux_scale, closed_form_start
from eagle3_serving.train.data import Answer, make_batches
from eagle3_serving.train.features import FeatureBatch, FeatureCache, extract_features
from eagle3_serving.train.ttt import TTTLoss, ttt_loss

_MAY_CHANGE = ("tokens", "save_every", "log_every")  # how long and how often, not what

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class TrainOptions:
    """How a run goes. `tokens` counts answer tokens seen, repeats included; it sets the learning-rate curve."""

    tokens: int = 2_000_000
    tokens_per_batch: int = 2048
    ttt_steps: int = 4
    step_decay: float = 0.8
    learning_rate: float = 4e-4
    fusion_learning_rate: float = 1e-4  # the closed form sets it; 1e-3 was seen to damage it
    weight_decay: float = 0.0
    clip: float = 0.5
    warmup: int = 30
    ema: float = 0.99
    closed_form_batches: int = 32
    save_every: int = 100
    log_every: int = 10
    replay: bool = True  # each fresh batch is followed by one already seen: its features cost nothing
    bf16: bool = True  # matrix products in bfloat16, twice as fast where the processor has them; weights stay fp32
    seed: int = 0


class Trainer:
    """Owns the drafter, its optimiser, their average, and the position in the data."""

    def __init__(
        self,
        drafter: Drafter,
        target: Target,
        answers: list[Answer],
        held_out: list[Answer],
        directory: Path,
        options: TrainOptions,
        closed_form: bool = True,
        cache_features: bool = True,
    ) -> None:
        self.drafter, self.options, self.directory = drafter, options, directory
        target.watch(drafter.config.aux_layers)
        self.extract = self.in_precision(partial(extract_features, target))
        self.closed_form = closed_form
        self.target_norm_H = weight_of(target.body.norm).detach()
        self.head_VH = weight_of(target.model.lm_head).detach()[drafter.vocabulary.target_ids]
        self.to_draft_V = drafter.vocabulary.to_draft()
        self.batches = make_batches(answers, options.tokens_per_batch, options.seed)
        self.held_out_answers = held_out
        self.held_out: list[FeatureBatch] = []
        self.device = self.head_VH.device
        self.cache = FeatureCache(directory / "features" if cache_features else None)
        self.scale_F = torch.ones(drafter.config.num_aux * drafter.config.target_hidden_size, device=self.device)
        self.seen_tokens = self.step = 0
        drafter.train().requires_grad_(True)
        drafter.embed_tokens.requires_grad_(False)  # the target's own, frozen (paper, section 3.1)
        fusion = list(drafter.fusion.parameters())
        rest = [p for n, p in drafter.named_parameters() if p.requires_grad and not n.startswith("fusion.")]
        self.parameters = fusion + rest
        groups = [
            {"params": fusion, "peak": options.fusion_learning_rate},
            {"params": rest, "peak": options.learning_rate},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.95), weight_decay=options.weight_decay)
        self.average = [p.detach().clone() for p in self.parameters]
        self.stopping = False

    def in_precision(self, compute: Callable[P, T]) -> Callable[P, T]:
        """`compute` with its matrix products in the run's precision."""

        def computed(*args: P.args, **kwargs: P.kwargs) -> T:
            device = self.target_norm_H.device.type
            # without a cache of casts: a cast made for the target in inference mode cannot be trained through
            with torch.autocast(device, torch.bfloat16, enabled=self.options.bf16, cache_enabled=False):
                return compute(*args, **kwargs)

        return computed

    # ---- data

    def features(self, index: int) -> FeatureBatch:
        """Batch `index`, its auxiliary features as the target gives them."""
        return self.cache.get(self.batches[index], self.extract).to(self.device)

    def scaled(self, batch: FeatureBatch) -> FeatureBatch:
        """The same batch, its auxiliary features divided by their scale in place."""
        batch.aux_BLF = batch.aux_BLF / self.scale_F
        return batch

    def order(self, start: int) -> Iterator[int]:
        """Batch numbers from step `start` on: a pure function of the step, so that a resumed run sees the same."""
        count, step = len(self.batches), 0
        fresh = 0
        while True:
            if fresh < count and not (self.options.replay and step % 2 == 1):
                index, fresh = fresh, fresh + 1
            else:
                index = random.Random(f"{self.options.seed}/{step}").randrange(max(1, min(fresh, count)))
            if step >= start:
                yield index
            step += 1

    # ---- the run

    def run(self) -> None:
        """Train until `tokens` answer tokens were seen, or until SIGINT/SIGTERM, which saves and returns."""
        if not self.resume():
            self.start()
        self.held_out = [self.scaled(self.extract(b)) for b in make_batches(self.held_out_answers, 2048, 0)]
        previous = {s: signal.signal(s, self._stop) for s in (signal.SIGINT, signal.SIGTERM)}
        bar = tqdm(total=self.options.tokens, initial=self.seen_tokens, unit="tok", unit_scale=True, desc="train")
        try:
            for index in self.order(self.step):
                if self.seen_tokens >= self.options.tokens or self.stopping:
                    break
                rows = self.train_step(self.scaled(self.features(index)), bar)
                bar.update(rows)
                if self.step % self.options.save_every == 0:
                    self.save()
                    self.log({"held_out": self.evaluate()})
        finally:
            bar.close()
            for s, handler in previous.items():
                signal.signal(s, handler)
        self.save()
        self.log({"held_out": self.evaluate()})

    def _stop(self, *_: Any) -> None:
        self.stopping = True

    def start(self) -> None:
        first = [self.features(n) for n in range(min(self.options.closed_form_batches, len(self.batches)))]
        self.scale_F = aux_scale(first)
        if self.closed_form:
            closed_form_start(self.drafter, [self.scaled(b) for b in first], self.target_norm_H, self.head_VH)
        else:  # a drafter that reads raw features goes on reading scaled ones
            weight_of(self.drafter.fusion.fc).data.mul_(self.scale_F)
        self.average = [p.detach().clone() for p in self.parameters]
        self.log({"options": asdict(self.options), "batches": len(self.batches)})

    def loss(self, batch: FeatureBatch) -> TTTLoss:
        o = self.options
        return self.in_precision(ttt_loss)(
            self.drafter, batch, self.head_VH, self.to_draft_V, o.ttt_steps, o.step_decay
        )

    def train_step(self, batch: FeatureBatch, bar: "tqdm[Any]") -> int:
        o = self.options
        progress = min(1.0, self.seen_tokens / o.tokens)
        rate = min(1.0, (self.step + 1) / o.warmup) * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * progress)))
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * rate
        result = self.loss(batch)
        self.optimizer.zero_grad(set_to_none=True)
        result.loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, o.clip)
        self.optimizer.step()
        # a young average follows closely, an old one slowly
        torch._foreach_lerp_(
            self.average, [p.detach() for p in self.parameters], 1 - min(o.ema, self.step / (self.step + 10))
        )
        self.step += 1
        self.seen_tokens += result.rows
        if self.step % o.log_every == 0:
            losses, accuracies = result.losses_S.tolist(), result.accuracies_S.tolist()
            self.log({"loss": losses, "accuracy": accuracies, "lr": o.learning_rate * rate})
            bar.set_postfix(loss=f"{losses[0]:.3f}", acc="/".join(f"{a:.2f}" for a in accuracies))
        return result.rows

    @torch.no_grad()
    def evaluate(self) -> dict[str, Any]:
        """Losses and accuracies per step of the averaged weights on held-out answers."""
        if not self.held_out:
            return {}
        saved = [p.detach().clone() for p in self.parameters]
        self._assign(self.average)
        results = [self.loss(batch) for batch in self.held_out]
        self._assign(saved)
        rows = torch.tensor([float(r.rows) for r in results], device=self.device)[:, None]
        mean = [
            ((torch.stack(x) * rows).sum(0) / rows.sum()).tolist()
            for x in zip(*[(r.losses_S, r.accuracies_S) for r in results], strict=True)
        ]
        return {"loss": mean[0], "accuracy": mean[1]}

    @torch.no_grad()
    def _assign(self, values: list[Tensor]) -> None:
        for parameter, value in zip(self.parameters, values, strict=True):
            parameter.copy_(value)

    # ---- state on disk

    def log(self, record: dict[str, Any]) -> None:
        record = {"step": self.step, "tokens": self.seen_tokens, "time": round(time.time(), 1), **record}
        with (self.directory / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def save(self) -> None:
        state = {
            "drafter": self.drafter.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average,
            "scale": self.scale_F,
            "step": self.step,
            "seen_tokens": self.seen_tokens,
            "recipe": self.recipe(),
        }
        beside = self.directory / ".state.partial"
        torch.save(state, beside)
        beside.replace(self.directory / "state.pt")

    def resume(self) -> bool:
        path = self.directory / "state.pt"
        if not path.exists():
            return False
        state = torch.load(path, weights_only=True, map_location=self.device)
        self._check_recipe(state["recipe"])
        self.drafter.load_state_dict(state["drafter"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.average, self.scale_F = state["average"], state["scale"]
        self.step, self.seen_tokens = state["step"], state["seen_tokens"]
        return True

    def recipe(self) -> dict[str, Any]:
        """What a run must go on with as it began, or it would become another run in silence."""
        options = {name: value for name, value in asdict(self.options).items() if name not in _MAY_CHANGE}
        config = self.drafter.config
        return {**options, "draft_vocab_size": config.draft_vocab_size, "batches": len(self.batches)}

    def _check_recipe(self, before: dict[str, Any]) -> None:
        now = self.recipe()
        for name in sorted(before.keys() | now.keys()):
            if before.get(name) != now.get(name):
                raise InputError(
                    f"{self.directory} holds a run with {name} {before.get(name)}, not {now.get(name)}: "
                    "go on with the same options and answers, or give another --out"
                )

    @torch.no_grad()
    def finished(self) -> Drafter:
        """The averaged drafter, reading raw features: the scale is folded into `fc`."""
        self._assign(self.average)
        weight_of(self.drafter.fusion.fc).div_(self.scale_F)
        return self.drafter.eval().requires_grad_(False)
