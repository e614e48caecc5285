"""Sampled requests on a CPU: drawn from the target's law, where SGLang takes the likeliest token whatever was asked.

SGLang verifies a tree on a CPU by the argmax of every row. Any token drawn from a row's law in the argmax's place makes the
same walk lossless: `accept_sampled` without proposals (SpecInfer, arXiv 2305.09781, theorem 4.2, for one-hot proposals).

Shape letters: B requests, R rows of a tree, V vocabulary.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

DrawFrom = Callable[..., Tensor]  # SGLang's sampling from probabilities by top-k, top-p and min-p


def draw_rows(logits: Tensor, positions: Tensor, info: Any, draw_from: DrawFrom) -> Tensor:
    """A token [B, R] after every row, by plain decoding's own sampling. `logits` [B * R, V], `positions` [B * R] of the
    rows, `info` SGLang's sampling values, one a request."""
    requests = len(info.temperatures)
    rows = len(logits) // requests

    def spread(values_B: Tensor) -> Tensor:
        return values_B.repeat_interleave(rows, dim=0)

    probs = torch.softmax(logits.float() / spread(info.temperatures), dim=-1)
    seeds = None if info.sampling_seed is None else spread(info.sampling_seed)
    drawn = draw_from(
        probs, spread(info.top_ks), spread(info.top_ps), spread(info.min_ps), info.need_min_p_sampling, seeds, positions
    )
    return drawn.view(requests, rows).long()


class Sampling:
    """Stands around SGLang's two functions: `sampling` knows the pass, `verifying` walks its trees."""

    def __init__(self, sample: Callable[..., Any], verify: Callable[..., Any], draw_from: DrawFrom) -> None:
        self._sample, self._verify, self._draw_from = sample, verify, draw_from
        self._pass: tuple[Any, Any, Any] | None = None

    def sampling(self, verify_input: Any, batch: Any, logits_output: Any, *args: Any, **kwargs: Any) -> Any:
        self._pass = verify_input, batch.sampling_info, logits_output
        try:
            return self._sample(verify_input, batch, logits_output, *args, **kwargs)
        finally:
            self._pass = None

    def verifying(self, *args: Any, target_predict: Tensor, **kwargs: Any) -> Any:
        if self._pass is not None and not self._pass[1].is_all_greedy:
            verify_input, info, logits_output = self._pass
            # SGLang has by now put penalties, biases and grammars into them
            drawn_BR = draw_rows(logits_output.next_token_logits, verify_input.positions, info, self._draw_from)
            target_predict = drawn_BR.to(target_predict.dtype)
        return self._verify(*args, target_predict=target_predict, **kwargs)
