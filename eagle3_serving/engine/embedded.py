"""The embedded engine: plain or speculative decoding on transformers, in continuous batches. The adapters' oracle.

Shape letters: B requests in flight, N draft nodes, R rows of a verify pass (root first), T packed rows, D depths.
"""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from eagle3_serving.drafter import Drafter
from eagle3_serving.engine.batch import Batch
from eagle3_serving.engine.options import DecodeOptions, Generation, Step
from eagle3_serving.engine.pair import check_pair, load_for
from eagle3_serving.engine.policy import Experience
from eagle3_serving.engine.speculate import Speculator
from eagle3_serving.engine.target import Target
from eagle3_serving.engine.watch import Watch
from eagle3_serving.errors import InputError
from eagle3_serving.tree.budget import CostModel
from eagle3_serving.tree.calibrate import Calibration

PREFILL_ROWS = 1024  # of one pass, padding counted: what a pass holds in memory, and how long the others wait


class Event(NamedTuple):
    """One target pass's yield for one request; `prompt` counts the prompts from 0."""

    prompt: int
    step: Step


class EmbeddedEngine:
    """Speculative decoding with an EAGLE-3 drafter (paper, sections 2.1 and 3.1).

    Output equals plain decoding's token for token, sampled with the same seed too; of drawn proposals it follows the law.
    `calibration` ranks trees by measured acceptance, `costs` is what mode auto decides by.
    """

    prefill_rows = PREFILL_ROWS
    # free slots that prompts wait for: where a pass of its own is dear, many are prefilled at once
    admit_least = 1

    def __init__(
        self,
        target: Target,
        drafter: Drafter | None = None,
        calibration: Calibration | None = None,
        costs: CostModel | None = None,
    ) -> None:
        """Raises InputError where the drafter is for another target. Without a drafter only plain decoding works."""
        self.target, self.drafter, self.calibration, self.costs = target, drafter, calibration, costs
        self.experience: dict[tuple[float, bool, bool], Experience] = {}  # what auto has seen, by what shapes it
        self.watch: Watch | None = None  # is shown every verify pass
        if drafter is not None:
            check_pair(drafter, target)
            target.watch(drafter.config.aux_layers)

    @classmethod
    def load(
        cls, target: Path, drafter: Path | None = None, dtype: torch.dtype = torch.float32, device: str = "cpu"
    ) -> "EmbeddedEngine":
        """From two directories; a calibration beside the drafter is read too.

        Raises InputError where one cannot be read or they do not belong together.
        """
        loaded = Target.load(target, dtype, device)
        if drafter is None:
            return cls(loaded)
        try:
            calibration = Calibration.beside(drafter)
        except ValueError as error:
            raise InputError(str(error)) from None
        return cls(loaded, load_for(loaded, drafter), calibration)

    def generate(self, prompt_ids: Sequence[int], options: DecodeOptions | None = None) -> Generation:
        """Tokens after the prompt, up to and with the end token. Raises InputError as `serve` does."""
        return self.generate_many([prompt_ids], options)[0]

    def generate_many(
        self, prompts: Sequence[Sequence[int]], options: DecodeOptions | None = None, batch: int = 1
    ) -> list[Generation]:
        """The same for several prompts, `batch` of them in flight at once."""
        steps: list[list[Step]] = [[] for _ in prompts]
        for index, step in self.serve(prompts, options, batch):
            steps[index].append(step)
        return [collect(of_one) for of_one in steps]

    def stream(self, prompt_ids: Sequence[int], options: DecodeOptions | None = None) -> Iterator[Step]:
        """One prompt, a target pass at a time."""
        return (event.step for event in self.serve([prompt_ids], options))

    def serve(
        self, prompts: Sequence[Sequence[int]], options: DecodeOptions | None = None, batch: int = 1
    ) -> Iterator[Event]:
        """All prompts, a target pass at a time: as one ends, the next takes its place.

        Raises InputError on a prompt that is empty, too long or out of range, and on a mode that cannot be served.
        """
        options = options or DecodeOptions()
        for prompt in prompts:
            self._check(prompt, options)
        if batch < 1:
            raise InputError(f"batch is {batch}: it must be at least 1")
        return self._serve(prompts, options, min(batch, len(prompts)))

    def _check(self, prompt_ids: Sequence[int], options: DecodeOptions) -> None:
        if options.mode != "plain" and self.drafter is None:
            raise InputError(f"mode {options.mode} needs a drafter; none was loaded")
        if options.mode == "auto" and self.costs is None:
            raise InputError("mode auto needs the machine's costs: measure them with engine.profile.measure_costs")
        if not prompt_ids:
            raise InputError("the prompt holds no token")
        if min(prompt_ids) < 0 or max(prompt_ids) >= self.target.vocab_size:
            raise InputError(f"the prompt holds a token outside 0..{self.target.vocab_size - 1}")
        if len(prompt_ids) + options.max_new_tokens > self.target.max_positions:
            raise InputError(
                f"prompt of {len(prompt_ids)} and {options.max_new_tokens} new tokens exceed the target's {self.target.max_positions}"
            )

    def _serve(self, prompts: Sequence[Sequence[int]], options: DecodeOptions, slots: int) -> Iterator[Event]:
        if not prompts:
            return
        begun = time.perf_counter()
        longest = max(map(len, prompts)) + options.max_new_tokens
        batch = Batch(self.target, options, slots, longest + options.shape.nodes + 1)
        speculator, experience = None, Experience()
        if options.mode != "plain":
            assert self.drafter is not None
            kind = (options.sampling.temperature, options.lookup, options.calibrated)
            experience = self.experience.setdefault(kind, Experience())
            speculator = Speculator(self.drafter, batch, options, self.calibration, self.costs, experience, self.watch)
        waiting = list(enumerate(prompts))[::-1]
        ends = self.target.eos_ids if options.eos_ids is None else frozenset(options.eos_ids)
        left = [options.max_new_tokens] * len(prompts)

        def cut(index: int, step: Step) -> Step:
            """Exactly after the first end token or the last token asked for."""
            tokens = step.token_ids[: left[index]]
            stops = [place for place, token in enumerate(tokens, 1) if token in ends]
            tokens = tokens[: stops[0]] if stops else tokens
            left[index] -= len(tokens)
            accepted = None if step.accepted is None else min(step.accepted, len(tokens))
            seconds = time.perf_counter() - begun
            last = bool(stops) or left[index] == 0
            if last:
                experience.answered(1 - left[index] / options.max_new_tokens)
            return Step(tokens, accepted, step.nodes, seconds, last)

        def to_come() -> float:
            """Tokens of the requests in flight, answers being as long as they lately were."""
            ended = options.max_new_tokens * (1 - experience.answer_share)
            return sum(max(left[index] - ended, 1.0) for index in batch.indices)

        while waiting or batch.size:
            free = slots - batch.size
            group = _next_group(waiting, free, self.prefill_rows) if free >= self.admit_least or not batch.size else []
            if group:
                admitted = [(slot, cut(batch.indices[slot], step)) for slot, step in batch.admit(group, speculator)]
                events = [Event(batch.indices[slot], step) for slot, step in admitted]
                for slot, step in reversed(admitted):
                    if step.last:
                        batch.release(slot, speculator)
                yield from events
                continue
            steps = batch.plain() if speculator is None else speculator.step(to_come())
            events = [Event(index, cut(index, step)) for index, step in zip(batch.indices, steps, strict=True)]
            for slot in reversed(range(len(events))):
                if events[slot].step.last:
                    batch.release(slot, speculator)
            yield from events


def _next_group(waiting: list[tuple[int, Sequence[int]]], free: int, rows: int) -> list[tuple[int, Sequence[int]]]:
    """The next prompts, taken off the end of `waiting`, that are prefilled in one pass."""
    group: list[tuple[int, Sequence[int]]] = []
    longest = 0
    while waiting and len(group) < free:
        longest = max(longest, len(waiting[-1][1]))
        if group and longest * (len(group) + 1) > rows:
            break
        group.append(waiting.pop())
    return group


def collect(steps: Sequence[Step]) -> Generation:
    """One request's steps as a whole."""
    return Generation(
        token_ids=tuple(token for step in steps for token in step.token_ids),
        accepted=tuple(step.accepted for step in steps if step.accepted is not None),
        passes=len(steps),
        seconds=steps[-1].seconds,
        nodes=sum(step.nodes for step in steps),
    )
