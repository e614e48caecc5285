"""The training run: batches in, a drafter out; resumable after a kill at any point."""

import itertools
import math
import random
import signal
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from tqdm import tqdm

from eagle3_serving.drafter.layers import weight_of
from eagle3_serving.drafter.model import Drafter
from eagle3_serving.engine.target import Target
from eagle3_serving.errors import CheckError
from eagle3_serving.train.best import Best, Watch
from eagle3_serving.train.closed_form import aux_scale, closed_form_start, scale_feature_norms
from eagle3_serving.train.data import Answer, make_batches
from eagle3_serving.train.features import FeatureBatch, FeatureSource, norm_weight, precision
from eagle3_serving.train.log import RunLog
from eagle3_serving.train.options import TrainOptions
from eagle3_serving.train.parallel import begin_following, begin_masks, begin_reading, known_before, read_scaled
from eagle3_serving.train.ranks import Ranks
from eagle3_serving.train.recipe import Recipe, recipe, require_same
from eagle3_serving.train.served import ServedMeasure
from eagle3_serving.train.shares import load_whole_state, share, shares_like, whole, whole_state
from eagle3_serving.train.state import read_state, write_state
from eagle3_serving.train.ttt import StepFunction, TTTLoss, ttt_loss

_MOST_SKIPPED = 20  # steps in a row without finite gradients
_COUNTED = ("skipped", "skipped_in_a_row", "best_accepted", "saves_since_best")


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
        source: FeatureSource | None = None,
        served: ServedMeasure | None = None,
        shared: bool = False,
    ) -> None:
        """`source`: where features come from; the target's passes, kept under `directory`, unless told. `served` measures
        what is trained, every so often, and the best is kept; None: nothing does. `shared`: once begun, every process keeps a
        share of the drafter."""
        self.drafter, self.options, self.directory = drafter, options, directory
        self.records = RunLog(directory / "log.jsonl")
        self.source = source or FeatureSource(
            target, drafter.config.aux_layers, directory / "features", bf16=options.bf16
        )
        self.closed_form = closed_form
        self.target_norm_H = norm_weight(target)
        self.head_VH = target.model.get_output_embeddings().weight.detach()[drafter.vocabulary.target_ids].float()
        self.softcap = getattr(target.model.config, "final_logit_softcapping", None)
        self.to_draft_V = drafter.vocabulary.to_draft()
        self.batches = make_batches(answers, options.tokens_per_batch, options.seed)
        self.held_out_answers = held_out
        self.held_out: list[FeatureBatch] = []
        self.device = self.head_VH.device
        self.ranks = Ranks.here(self.device)
        self.scale_F = torch.ones(drafter.config.num_aux * drafter.config.target_hidden_size, device=self.device)
        self.seen_tokens = self.step = self.skipped = self.skipped_in_a_row = 0
        self.best_accepted, self.saves_since_best = 0.0, 0
        self.served, self.watch = served, Watch()
        self.best: Best | None = None
        drafter.train().requires_grad_(True)
        drafter.embed_tokens.requires_grad_(False)  # the target's own, frozen (paper, section 3.1)
        drafter.fusion.requires_grad_(not options.keep_feature)
        self.shared = shared
        self.parameters = _trained(drafter)
        self.optimizer = self._new_optimizer()
        self.average = [p.detach().clone() for p in self.parameters]
        self.draft_step: StepFunction = drafter.step
        if options.compile:
            # a graph for each unrolled step, with and without gradients
            limit = torch.compiler.config.recompile_limit
            torch.compiler.config.recompile_limit = max(limit, 4 * options.ttt_steps)
            self.draft_step = torch.compile(drafter.step, dynamic=True)
        self.asked_to_stop = self.stopping = False

    def _new_optimizer(self) -> torch.optim.Optimizer:
        """Two groups: what the closed form or a drafter from before has set learns at the fusion's rate."""
        fusion = {id(p) for p in self.drafter.fusion.parameters()}
        if self.drafter.config.parallel and not self.closed_form:
            fusion |= known_before(self.drafter)
        groups = [
            {"params": [p for p in self.parameters if (id(p) in fusion) == slow], "peak": peak}
            for slow, peak in ((True, self.options.fusion_learning_rate), (False, self.options.learning_rate))
        ]
        return torch.optim.AdamW(
            [group for group in groups if group["params"]],
            lr=0.0,
            betas=(0.9, 0.95),
            weight_decay=self.options.weight_decay,
        )

    def _share(self) -> None:
        """Whole weights, their average and the optimiser's moments become shares; they are alike on every process."""
        state = self.optimizer.state_dict()
        share(self.drafter)
        self.parameters = _trained(self.drafter)
        self.average = shares_like(self.average, self.parameters)
        self.optimizer = self._new_optimizer()
        load_whole_state(self.optimizer, state)

    # ---- data

    def features(self, index: int) -> FeatureBatch:
        """Batch `index`, its auxiliary features as the target gives them."""
        return self.source(self.batches[index]).to(self.device)

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
        fresh = not self.resume()
        if fresh:
            if self.ranks.first:
                self.records.forget_after(-1)  # of an attempt that was killed before it saved anything
            self.start()
        ranks = self.ranks
        ranks.copy_from_first([self.scale_F, *self.parameters, *self.average])
        if self.shared:
            self._share()
        self.stopping = self.worn_out
        held_out = make_batches(self.held_out_answers, 2048, 0)
        self.held_out = [self.scaled(self.source(batch).to(self.device)) for batch in held_out]
        previous = {s: signal.signal(s, self._stop) for s in (signal.SIGINT, signal.SIGTERM)}
        if fresh and not self.closed_form:  # what it goes on from is the first candidate
            self.serve()
        bar = tqdm(
            total=self.options.tokens,
            initial=self.seen_tokens,
            unit="tok",
            unit_scale=True,
            desc="train",
            disable=not ranks.first,
        )
        mine = itertools.islice(self.order(self.step * ranks.size), ranks.rank, None, ranks.size)
        try:
            for index, following in itertools.pairwise(mine):
                if self.seen_tokens >= self.options.tokens or self.stopping:
                    break
                self.source.ahead(self.batches[following])
                before = self.seen_tokens
                rows = self.train_step(index, bar)
                bar.update(rows)
                if self.watch.due(before, self.seen_tokens, self.options.measure_every):
                    self.serve()
                if self.step % self.options.save_every == 0:
                    self.measure()
                    self.save()
        finally:
            bar.close()
            for s, handler in previous.items():
                signal.signal(s, handler)
        if self.complete and self.watch.last not in (-1, self.seen_tokens):
            self.serve()
        self.save()
        self.log({"held_out": self.evaluate()})

    @property
    def complete(self) -> bool:
        """Whether all of `tokens` were seen, or it stopped by itself."""
        return self.seen_tokens >= self.options.tokens or self.worn_out

    def serve(self) -> None:
        """Measure the average as it would be served now, and keep it where it is the best; on the first rank."""
        average = [whole(w) for w in self.average]  # by all processes
        if self.served is not None and self.ranks.first:
            begun = time.perf_counter()
            found = self.served(self.drafted(average, torch.bfloat16))
            if self.best is None or found.score > self.best.served.score:
                self.best = Best(found, self.seen_tokens, self.step, [w.clone() for w in average])
            self.watch.note(self.seen_tokens, time.perf_counter() - begun)
            self.log({"served": self.watch.record(found, self.best.tokens == self.seen_tokens)})
            tqdm.write(self.watch.line(found, self.best, self.options.measure_every))
        self.watch.last = self.seen_tokens  # on every rank, that all are of one mind whether the last was measured
        self.ranks.wait()

    def measure(self) -> None:
        """Held-out figures into the log; enough of them without a better one end the run."""
        found = self.evaluate()
        self.log({"held_out": found})
        if not found:
            return
        better = found["accepted_length"] > self.best_accepted
        self.best_accepted = max(self.best_accepted, found["accepted_length"])
        self.saves_since_best = 0 if better else self.saves_since_best + 1
        self.stopping = self.stopping or self.worn_out

    @property
    def worn_out(self) -> bool:
        """Whether `patience` is at its end."""
        return 0 < self.options.patience <= self.saves_since_best

    def _stop(self, *_: Any) -> None:
        self.asked_to_stop = True  # every rank learns of it at the end of a step

    def start(self) -> None:
        first = [self.features(n) for n in range(min(self.options.closed_form_batches, len(self.batches)))]
        if self.drafter.config.pre_fc_norm == "none":  # a norm before `fc` would undo any scale
            self.scale_F = aux_scale(first)
        elif self.closed_form:
            scale_feature_norms(self.drafter, first)
        first = [self.scaled(b) for b in first]
        if self.closed_form:
            closed_form_start(
                self.drafter,
                first,
                self.target_norm_H,
                self.head_VH,
                self.options.keep_feature,
            )
        else:  # a drafter that reads raw features goes on reading scaled ones
            read_scaled(self.drafter, self.scale_F)
        if self.drafter.config.parallel:
            begin_masks(self.drafter, first)
            begin_reading(self.drafter, first, self.options.ttt_steps)
            begin_following(self.drafter, first, self.options.ttt_steps)
        self.average = [p.detach().clone() for p in self.parameters]
        self.log({"options": asdict(self.options), "batches": len(self.batches)})

    def loss(self, batch: FeatureBatch) -> TTTLoss:
        o = self.options
        with precision(self.device, o.bf16):
            return ttt_loss(
                self.drafter,
                batch,
                self.head_VH,
                self.to_draft_V,
                o.ttt_steps,
                o.step_decay,
                o.criterion,
                self.target_norm_H,
                self.softcap,
                self.draft_step,
            )

    def train_step(self, index: int, bar: "tqdm[Any]") -> int:
        o = self.options
        progress = min(1.0, self.seen_tokens / o.tokens)
        rate = min(1.0, (self.step + 1) / max(1, o.warmup)) * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * progress)))
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * rate
        result = self.loss(self.scaled(self.features(index)))
        self.optimizer.zero_grad(set_to_none=True)
        rows, asked = self.ranks.sum([result.rows, self.asked_to_stop], self.device)
        part = result.rows / max(1.0, rows)
        if self.shared:
            # FSDP takes the mean over processes, not over rows; also of no rows, for the others wait for this one's share
            (result.loss * part * self.ranks.size).backward()
        elif result.rows:
            result.loss.backward()
        if not self.shared:
            self.ranks.average_gradients(self.parameters, part)
        norm = whole(torch.nn.utils.clip_grad_norm_(self.parameters, o.clip))
        if rows and math.isfinite(norm):
            self.optimizer.step()
            # a young average follows closely, an old one slowly
            torch._foreach_lerp_(
                self.average, [p.detach() for p in self.parameters], 1 - min(o.ema, self.step / (self.step + 10))
            )
            self.skipped_in_a_row = 0
        else:
            self._skip(index)
        self.step += 1
        self.seen_tokens += int(rows)
        self.stopping = self.stopping or asked > 0
        if self.step % o.log_every == 0:
            losses, accuracies = result.losses_S.tolist(), result.accuracies_S.tolist()
            self.log({"loss": losses, "accuracy": accuracies, "lr": o.learning_rate * rate})
            bar.set_postfix(loss=f"{losses[0]:.3f}", acc="/".join(f"{a:.2f}" for a in accuracies))
        return int(rows)

    def _skip(self, index: int) -> None:
        """A batch without finite gradients, or without a token to learn, changes nothing. Raises CheckError where there is
        one after the other."""
        self.skipped += 1
        self.skipped_in_a_row += 1
        first = self.batches[index][0].id
        self.log({"skipped": self.skipped, "batch": index, "first_answer": first})
        if self.skipped_in_a_row >= _MOST_SKIPPED:
            raise CheckError(
                f"{self.directory}: nothing to learn (no finite gradients, or no token of the draft vocabulary) in "
                f"{_MOST_SKIPPED} batches in a row, the last from answer {first}; what was saved before is whole: try a "
                "smaller --learning-rate or --no-bf16 with another --out"
            )

    @torch.no_grad()
    def evaluate(self) -> dict[str, Any]:
        """Losses and accuracies per step, and the accepted length of chains of `ttt_steps` begun at every row, of the
        averaged weights on held-out answers."""
        if not self.held_out:
            return {}
        saved = [p.detach().clone() for p in self.parameters]
        self._assign(self.average)
        results = [self.loss(batch) for batch in self.held_out]
        self._assign(saved)
        rows_NS = torch.tensor([r.rows_S for r in results], device=self.device)
        losses, accuracies = (
            ((torch.stack(x) * rows_NS).sum(0) / rows_NS.sum(0).clamp(min=1)).tolist()
            for x in zip(*[(r.losses_S, r.accuracies_S) for r in results], strict=True)
        )
        accepted = sum(float(r.accepted) for r in results) / max(1, sum(r.chains for r in results))
        return {"loss": losses, "accuracy": accuracies, "accepted_length": 1 + accepted}

    @torch.no_grad()
    def _assign(self, values: list[Tensor]) -> None:
        for parameter, value in zip(self.parameters, values, strict=True):
            parameter.copy_(value)

    # ---- state on disk

    def log(self, record: dict[str, Any]) -> None:
        if not self.ranks.first:
            return
        self.records.add({"step": self.step, "tokens": self.seen_tokens, "time": round(time.time(), 1), **record})

    def save(self) -> None:
        """The whole state, beside and renamed; by the first rank, before any goes on."""
        # shares are gathered by all
        state = {
            "drafter": {name: whole(value) for name, value in self.drafter.state_dict().items()},
            "optimizer": whole_state(self.optimizer),
            "average": [whole(w) for w in self.average],
            "scale": self.scale_F,
            "step": self.step,
            "seen_tokens": self.seen_tokens,
            "recipe": self.recipe(),
            "best": None if self.best is None else self.best.state(),
            "watch": self.watch.state(),
            **{name: getattr(self, name) for name in _COUNTED},
        }
        if self.ranks.first:
            write_state(self.directory, state)
        self.ranks.wait()

    def resume(self) -> bool:
        state = read_state(self.directory, self.device)
        if state is None:
            return False
        norms = "per_aux" if "fusion.fc_norm.0.weight" in state["drafter"] else "none"
        require_same(self.directory, state["recipe"], self.recipe(), norms)
        self.drafter.load_state_dict(state["drafter"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.average, self.scale_F = state["average"], state["scale"]
        self.step, self.seen_tokens = state["step"], state["seen_tokens"]
        for name in _COUNTED:
            setattr(self, name, state.get(name, getattr(self, name)))
        self.best = Best.of_state(state["best"]) if state.get("best") else None
        self.watch = Watch.of_state(state.get("watch") or {})
        if self.ranks.first:
            self.records.forget_after(self.step)
        return True

    def recipe(self) -> Recipe:
        """What this run was begun with."""
        answers = itertools.chain(*self.batches, self.held_out_answers)
        ids = self.drafter.vocabulary.target_ids.tolist()
        return recipe(
            self.options,
            self.drafter.config,
            self.ranks.size,
            self.source.fingerprint,
            answers,
            ids,
            len(self.batches),
        )

    # ---- what comes out

    def finished(self) -> Drafter:
        """The drafter that is kept: the best one served, else the average as it is now."""
        return self.drafted([whole(w) for w in self.average] if self.best is None else self.best.weights)

    @torch.no_grad()
    def drafted(self, weights: list[Tensor], dtype: torch.dtype | None = None) -> Drafter:
        """A drafter of these weights that reads raw features: the scale is folded into `fc`. `dtype`: what they are rounded
        to, as in a file."""
        shared = self.drafter.embed_tokens  # large, and nothing changes it
        drafter = Drafter(self.drafter.config, self.drafter.vocabulary.target_ids)
        drafter.embed_tokens = shared
        drafter.fusion.requires_grad_(not self.options.keep_feature)
        untrained = {name: v for name, v in self.drafter.state_dict().items() if not isinstance(v, DTensor)}
        drafter.load_state_dict(untrained, strict=False)
        drafter.to(self.device)
        for parameter, value in zip(_trained(drafter), weights, strict=True):
            parameter.copy_(value)
        read_scaled(drafter, 1 / self.scale_F)
        for parameter in drafter.parameters() if dtype is not None else ():
            if parameter is not weight_of(shared):
                parameter.copy_(parameter.to(dtype))
        drafter.eval()
        for parameter in _trained(drafter):
            parameter.requires_grad_(False)
        return drafter


def _trained(drafter: Drafter) -> list[nn.Parameter]:
    """The parameters that are trained, those of the fusion first."""
    named = [(n, p) for n, p in drafter.named_parameters() if p.requires_grad]
    return [p for _, p in sorted(named, key=lambda pair: not pair[0].startswith("fusion."))]
