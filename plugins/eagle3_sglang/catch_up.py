"""What the draft missed while nothing was drafted: kept, and taken in by one pass before drafting goes on.

Without it the draft's cache had holes where plain decoding steps stood, and drafts after them were poor.

Shape letters: B requests, F features of the target, R rows kept, W rows of a request in one pass.
"""

from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from eagle3_sglang.host import to_device

WIDTH = 8  # rows a request and pass; fewer than the cache slots SGLang keeps free past a request's end
MOST_BYTES = 256 << 20  # of features; older ones are forgotten, which costs acceptance, never exactness


class Missed(NamedTuple):
    """One plain decoding step: the target's features [B, F] of the token it read, and the token after it [B]."""

    requests: tuple[str, ...]
    features_BF: Tensor
    tokens_B: Tensor


class Plan(NamedTuple):
    """Rows of one pass of W rows a request: which kept row each is, and how far before its request's end it begins."""

    rows_BW: Tensor
    back_B: Tensor


class Backlog:
    """Steps that the draft missed, oldest first."""

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self.most_bytes = most_bytes
        self._steps: deque[Missed] = deque()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._steps)

    def add(self, requests: Sequence[str], features_BF: Tensor, tokens_B: Tensor) -> None:
        self._steps.append(Missed(tuple(requests), features_BF, tokens_B))
        self._bytes += features_BF.nbytes
        while self._bytes > self.most_bytes and len(self._steps) > 1:
            self._bytes -= self._steps.popleft().features_BF.nbytes

    def clear(self) -> None:
        self._steps.clear()
        self._bytes = 0

    def features(self) -> Tensor:
        """[R, F] of all steps."""
        return torch.cat([step.features_BF for step in self._steps])

    def tokens(self) -> Tensor:
        """[R] int64."""
        return torch.cat([step.tokens_B for step in self._steps]).long()

    def plans(self, requests: Sequence[str], width: int = WIDTH) -> list[Plan]:
        """Passes that take in all of these requests' rows. A pass is as wide for each; rows past a request's own stand
        past its end, where the next draft writes over them."""
        rows: dict[str, list[int]] = {request: [] for request in requests}
        first = 0
        for step in self._steps:
            for place, request in enumerate(step.requests):
                if request in rows:
                    rows[request].append(first + place)
            first += len(step.requests)
        longest = max(map(len, rows.values()), default=0)
        passes = []
        for begin in range(0, longest, width):
            chunks = [rows[request][begin : begin + width] for request in requests]
            padded = [chunk + [0] * (width - len(chunk)) for chunk in chunks]
            back = [max(len(rows[request]) - begin, 0) for request in requests]
            passes.append(Plan(torch.tensor(padded), torch.tensor(back)))
        return passes


def absorb(backlog: Backlog, worker: Any, batch: Any) -> None:
    """Runs the draft over what the batch's requests missed, and forgets it."""
    from eagle3_sglang import compat

    plans = backlog.plans([request.rid for request in batch.reqs])
    if plans:
        device = batch.seq_lens.device
        features_RF, tokens_R = backlog.features(), backlog.tokens()
        for plan in plans:
            rows = to_device(plan.rows_BW.flatten(), device)
            compat.draft_extend(worker, batch, plan.back_B, features_RF[rows], tokens_R[rows], WIDTH)
    backlog.clear()
