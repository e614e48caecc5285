"""The requests in flight: their slots in the KV pool, their last tokens, and plain decoding steps.

Shape letters: B requests, T packed rows, S places of the text, F concatenated features.
"""

import hashlib
import secrets
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from eagle3_serving.engine.options import DecodeOptions, Step
from eagle3_serving.engine.rows import plan_rows
from eagle3_serving.engine.target import Target, TargetOutput
from eagle3_serving.tree import Noise, SamplingParams, sample


class Follower(Protocol):
    """What a batch tells of its slots to whoever drafts for them."""

    def admitted(self, first: int, aux_TF: Tensor, next_T: Tensor, counts: list[int]) -> None:
        """New requests in slots `first`, `first` + 1, ...: features and next tokens of their prompts' rows, packed."""

    def moved(self, source: int, destination: int) -> None:
        """The request in slot `source` goes on in `destination`."""


class Batch:
    """Requests in slots 0 .. size - 1. A request's last token (the root of the next tree) is not in the pool yet."""

    def __init__(self, target: Target, options: DecodeOptions, slots: int, capacity: int) -> None:
        self.target, self.options, self.device = target, options, target.device
        self.pool = target.new_pool(slots, capacity)
        self.slots, self.capacity, self.size = slots, capacity, 0
        self.indices: list[int] = []
        self.lengths: list[int] = []  # rows in the pool
        self.roots_B = torch.zeros(slots, dtype=torch.long, device=self.device)
        self.text_BS = torch.zeros(slots, capacity, dtype=torch.long, device=self.device) if options.lookup else None
        # what the target says is its likeliest token: nothing is drawn
        self.settled = options.sampling.temperature == 0 or target.recorded
        self.seed = secrets.randbits(63) if options.sampling.seed is None else options.sampling.seed
        # of what is drawn by no position: a draft's own tokens, and whether they are accepted
        self.generator = torch.Generator(device=self.device).manual_seed(self.seed)

    def sampling(self, batch: int) -> SamplingParams:
        s = self.options.sampling
        return SamplingParams.uniform(batch, s.temperature, s.top_k, s.top_p, s.min_p, self.device)

    def noise(self, indices: Sequence[int], positions: Sequence[int]) -> Noise:
        """Of the draws after the rows at `positions` of the requests of these indices: a request's own, whoever else is in the
        batch."""
        seeds = [_seed(self.seed, index) for index in indices]
        return Noise(torch.tensor(seeds, device=self.device), torch.tensor(positions, device=self.device))

    def root_noise(self) -> Noise:
        """Of the draws after the roots."""
        return self.noise(self.indices, self.lengths)

    def choose(self, logits_BV: Tensor, noise: Callable[[], Noise]) -> Tensor:
        """One token a request [B]: the argmax, or a draw from the request's law."""
        if self.settled:
            return logits_BV.argmax(-1)
        return sample(logits_BV, self.sampling(len(logits_BV)), noise())

    def admit(self, prompts: Sequence[tuple[int, Sequence[int]]], follower: Follower | None) -> list[tuple[int, Step]]:
        """Prefill prompts, each with its index, into the next free slots in one pass; their slots and first tokens."""
        first, counts = self.size, [len(prompt_ids) for _, prompt_ids in prompts]
        tokens_T = torch.tensor([token for _, prompt_ids in prompts for token in prompt_ids], device=self.device)
        plan = plan_rows(first, [0] * len(counts), counts, self.device)
        last_B = torch.tensor(counts, device=self.device).cumsum(0) - 1
        output = self.target.forward(tokens_T, plan.place_T, self.pool, plan, logits_rows=last_B)
        indices = [index for index, _ in prompts]
        roots_B = self.choose(output.logits_TV, lambda: self.noise(indices, [count - 1 for count in counts]))
        self.indices += indices
        self.lengths += counts
        self.size += len(prompts)
        self.roots_B[first : self.size] = roots_B
        next_T = torch.cat([tokens_T[1:], roots_B[-1:]])
        next_T[last_B] = roots_B
        if self.text_BS is not None:
            self.text_BS[plan.slot_T, plan.place_T] = tokens_T
            self.text_BS[plan.slot_T, plan.place_T + 1] = next_T
        if follower is not None:
            assert output.aux_TF is not None
            follower.admitted(first, output.aux_TF, next_T, counts)
        return [(slot, Step((token,))) for slot, token in enumerate(roots_B.tolist(), first)]

    def release(self, slot: int, follower: Follower | None) -> None:
        """End the request in `slot`; the last slot's request takes its place."""
        last = self.size - 1
        if slot != last:
            self.pool.copy_slot(last, slot, self.lengths[last])
            self.indices[slot], self.lengths[slot] = self.indices[last], self.lengths[last]
            self.roots_B[slot] = self.roots_B[last]
            if self.text_BS is not None:
                self.text_BS[slot] = self.text_BS[last]
            if follower is not None:
                follower.moved(last, slot)
        self.indices.pop()
        self.lengths.pop()
        self.size = last

    def plain(self) -> list[Step]:
        """One token for every request."""
        return self.plain_pass()[0]

    def plain_pass(self) -> tuple[list[Step], TargetOutput]:
        """The same, and what the target's pass gave."""
        plan = plan_rows(0, self.lengths, [1] * self.size, self.device)
        output = self.target.forward(self.roots_B[: self.size].clone(), plan.place_T, self.pool, plan)
        tokens_B = self.choose(output.logits_TV, self.root_noise)
        return [Step((token,)) for token in self.commit([1] * self.size, tokens_B, tokens_B)], output

    def commit(self, rows: Sequence[int], tokens_T: Tensor, roots_B: Tensor) -> list[int]:
        """Count `rows[b]` more rows in the pool, whose next tokens are packed in `tokens_T`; the last become the roots."""
        if self.text_BS is not None:
            # a row's next token stands one place after it
            plan = plan_rows(0, [length + 1 for length in self.lengths], rows, self.device)
            self.text_BS[plan.slot_T, plan.place_T] = tokens_T
        self.lengths = [length + count for length, count in zip(self.lengths, rows, strict=True)]
        self.roots_B[: self.size] = roots_B
        tokens: list[int] = tokens_T.tolist()
        return tokens


def _seed(seed: int, index: int) -> int:
    """Of one request, int64: near seeds and near indices have nothing in common."""
    return int.from_bytes(hashlib.blake2b(f"{seed}/{index}".encode(), digest_size=8).digest(), "big", signed=True)
