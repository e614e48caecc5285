"""The embedded engine: plain or speculative greedy decoding of one request on transformers. The adapters' oracle.

Shape letters: B requests (1), L rows, R rows of a verify pass (root first), S rows in the cache after them.
"""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from eagle3_serving.drafter import Drafter
from eagle3_serving.engine.draft import DraftSession
from eagle3_serving.engine.options import DecodeOptions, Generation, Step
from eagle3_serving.engine.pair import check_pair, load_for
from eagle3_serving.engine.target import Target
from eagle3_serving.engine.target_cache import TargetCache
from eagle3_serving.errors import InputError
from eagle3_serving.tree import DraftTree, accept_greedy, positions, tree_layout, with_root


class EmbeddedEngine:
    """Speculative decoding with an EAGLE-3 drafter (paper, sections 2.1 and 3.1); greedy output equals plain decoding's."""

    def __init__(self, target: Target, drafter: Drafter | None = None) -> None:
        """Raises InputError where the drafter is for another target. Without a drafter only plain decoding works."""
        self.target, self.drafter = target, drafter
        if drafter is not None:
            check_pair(drafter, target)
            target.watch(drafter.config.aux_layers)

    @classmethod
    def load(
        cls, target: Path, drafter: Path | None = None, dtype: torch.dtype = torch.float32, device: str = "cpu"
    ) -> "EmbeddedEngine":
        """From two directories. Raises InputError where one cannot be read or they do not belong together."""
        loaded = Target.load(target, dtype, device)
        return cls(loaded, None if drafter is None else load_for(loaded, drafter))

    def generate(self, prompt_ids: Sequence[int], options: DecodeOptions | None = None) -> Generation:
        """Tokens after the prompt, up to and with the end token. Raises InputError as `stream` does."""
        start = time.perf_counter()
        steps = list(self.stream(prompt_ids, options))
        seconds = time.perf_counter() - start
        return Generation(
            token_ids=tuple(token for step in steps for token in step.token_ids),
            accepted=tuple(step.accepted for step in steps if step.accepted is not None),
            passes=len(steps),
            seconds=seconds,
        )

    def stream(self, prompt_ids: Sequence[int], options: DecodeOptions | None = None) -> Iterator[Step]:
        """The same, a target pass at a time. Raises InputError on a prompt that is empty, too long or out of range."""
        options = options or DecodeOptions()
        self._check(prompt_ids, options)
        steps = self._plain(prompt_ids, options) if options.mode == "plain" else self._speculate(prompt_ids, options)
        eos_ids = self.target.eos_ids if options.eos_ids is None else frozenset(options.eos_ids)
        return _until_end(steps, options.max_new_tokens, eos_ids)

    def _check(self, prompt_ids: Sequence[int], options: DecodeOptions) -> None:
        if options.mode != "plain" and self.drafter is None:
            raise InputError(f"mode {options.mode} needs a drafter; none was loaded")
        if not prompt_ids:
            raise InputError("the prompt holds no token")
        if min(prompt_ids) < 0 or max(prompt_ids) >= self.target.vocab_size:
            raise InputError(f"the prompt holds a token outside 0..{self.target.vocab_size - 1}")
        if len(prompt_ids) + options.max_new_tokens > self.target.max_positions:
            raise InputError(
                f"prompt of {len(prompt_ids)} and {options.max_new_tokens} new tokens exceed the target's {self.target.max_positions}"
            )

    def _plain(self, prompt_ids: Sequence[int], options: DecodeOptions) -> Iterator[Step]:
        cache = self.target.new_cache(len(prompt_ids) + options.max_new_tokens)
        tokens_BL = torch.tensor([list(prompt_ids)], device=self.target.device)
        while True:
            places_BL = torch.arange(cache.length, cache.length + tokens_BL.shape[1], device=self.target.device)[None]
            output = self.target.forward(tokens_BL, places_BL, cache, last_only=True)
            tokens_BL = output.logits_BLV.argmax(-1)
            yield Step((int(tokens_BL),))

    def _speculate(self, prompt_ids: Sequence[int], options: DecodeOptions) -> Iterator[Step]:
        assert self.drafter is not None
        shape = options.shape
        length = len(prompt_ids) + options.max_new_tokens
        cache = self.target.new_cache(length + shape.nodes + 1)
        draft = DraftSession(self.drafter, length + shape.depth + shape.rows + 1)
        prompt_BL = torch.tensor([list(prompt_ids)], device=self.target.device)
        places_BL = torch.arange(len(prompt_ids), device=self.target.device)[None]
        output = self.target.forward(prompt_BL, places_BL, cache, last_only=True)
        root_B1 = output.logits_BLV.argmax(-1)
        yield Step((int(root_B1),))
        assert output.aux_BLF is not None
        draft.absorb(output.aux_BLF, torch.cat([prompt_BL[:, 1:], root_B1], dim=1))
        while True:
            tokens_BL, aux_BLF = self._verify(root_B1, draft.propose(shape), cache, shape.depth)
            new = tokens_BL[0].tolist()
            yield Step(tuple(new), accepted=len(new) - 1)
            root_B1 = tokens_BL[:, -1:]
            draft.absorb(aux_BLF, tokens_BL)

    def _verify(self, root_B1: Tensor, tree: DraftTree, cache: TargetCache, depth: int) -> tuple[Tensor, Tensor]:
        """One target pass over root and tree; the new tokens [B, L], bonus last, and the features [B, L, F] before each."""
        layout = tree_layout(with_root(tree.parents_BN), depth)
        tokens_BR = torch.cat([root_B1, tree.tokens_BN], dim=1)
        start, rows = cache.length, tokens_BR.shape[1]
        committed_BRS = torch.ones(1, rows, start, dtype=torch.bool, device=tokens_BR.device)
        mask_BRS = torch.cat([committed_BRS, layout.ancestors_BNN], dim=2)
        root_position_B = torch.full((1,), start, device=tokens_BR.device)
        output = self.target.forward(tokens_BR, positions(layout, root_position_B), cache, mask_BRS)
        accepted = accept_greedy(tokens_BR, layout, output.logits_BLV.argmax(-1), depth)
        # the step's only wait for the device: how many were accepted decides the shapes of the next pass
        kept = [0, *(row for row in accepted.rows_BD[0].tolist() if row >= 0)]
        cache.keep(start, kept)
        assert output.aux_BLF is not None
        kept_L = torch.tensor(kept, device=tokens_BR.device)
        tokens_BL = torch.cat([tokens_BR[:, kept_L[1:]], accepted.bonus_B[:, None]], dim=1)
        return tokens_BL, output.aux_BLF[:, kept_L]


def _until_end(steps: Iterator[Step], max_new_tokens: int, eos_ids: frozenset[int]) -> Iterator[Step]:
    """Cut the steps exactly after the first end token or the last token asked for."""
    left = max_new_tokens
    for step in steps:
        tokens = step.token_ids[:left]
        ends = [place for place, token in enumerate(tokens, 1) if token in eos_ids]
        tokens = tokens[: ends[0]] if ends else tokens
        yield Step(tokens, None if step.accepted is None else min(step.accepted, len(tokens)))
        left -= len(tokens)
        if ends or left == 0:
            return
