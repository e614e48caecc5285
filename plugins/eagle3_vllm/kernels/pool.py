"""The pool of a draft in buffers that keep their places: every depth's candidates, and what each draft step runs on.

Shape letters: B requests of the padded batch, W nodes drafted from at a depth, C children of each, P candidates of the
pool, S draft rows so far, X = B * W.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from eagle3_serving.tree import Candidates


@dataclass(frozen=True)
class DraftShape:
    """A draft of fixed shape: `depth` times the `top_k` best children of the frontier's `top_k` best nodes.

    Raises ValueError where it is no shape, or larger than the kernels count.
    """

    top_k: int
    depth: int
    vocab: int

    def __post_init__(self) -> None:
        if min(self.top_k, self.depth, self.vocab) < 1:
            raise ValueError(f"a draft of top-k {self.top_k}, depth {self.depth} over {self.vocab} tokens")
        if self.top_k > 45 or self.vocab > 1 << 20:
            raise ValueError(f"top-k {self.top_k} over {self.vocab} tokens: at most 45 over {1 << 20}")

    @property
    def children(self) -> int:
        return min(self.top_k, self.vocab)

    @property
    def widths(self) -> tuple[int, ...]:
        """Nodes drafted from, by depth: the root, then the frontiers."""
        widths = [1]
        for _ in range(self.depth - 1):
            widths.append(min(self.top_k, widths[-1] * self.children))
        return tuple(widths)

    @property
    def candidates(self) -> int:
        return sum(self.widths) * self.children

    @property
    def rows(self) -> int:
        """Draft rows of all steps: the root is none."""
        return sum(self.widths) - 1


@dataclass(frozen=True)
class Step:
    """What the draft step behind a frontier takes in, its nodes best first.

    `tokens_BW` int64 in target ids, `source_BW` int64 the row (of X, of the step before) whose states each takes in,
    `positions_BW` int64, `mask_BWS` bool what each row sees of the draft rows so far, its own the last W. `scores_BW` fp32
    and `nodes_BW` int64 (pool index, -1 the root) are the frontier's own. The root's step has those two alone.
    """

    tokens_BW: Tensor
    source_BW: Tensor
    positions_BW: Tensor
    mask_BWS: Tensor
    scores_BW: Tensor
    nodes_BW: Tensor


@dataclass(frozen=True)
class DraftBuffers:
    """`tokens_BP` int64 draft ids, `parents_BP` int64, `scores_BP` fp32: the pool, as the core's `Candidates`. `steps[d]`:
    the frontier after depth d, `steps[0]` the root. The rest is scratch."""

    shape: DraftShape
    tokens_BP: Tensor
    parents_BP: Tensor
    scores_BP: Tensor
    steps: tuple[Step, ...]
    best: Tensor
    largest: Tensor
    total: Tensor

    @classmethod
    def make(cls, batch: int, shape: DraftShape, device: torch.device | str) -> "DraftBuffers":
        def long(*size: int) -> Tensor:
            return torch.zeros(size, dtype=torch.long, device=device)

        def real(*size: int) -> Tensor:
            return torch.zeros(size, dtype=torch.float32, device=device)

        steps, rows = [], 0
        for place, width in enumerate(shape.widths):
            rows += width if place else 0
            mask_BWS = torch.zeros(batch, width, rows, dtype=torch.bool, device=device)
            tokens_BW, source_BW, positions_BW, nodes_BW = (long(batch, width) for _ in range(4))
            steps.append(Step(tokens_BW, source_BW, positions_BW, mask_BWS, real(batch, width), nodes_BW - 1))
        rows, chunks = batch * max(shape.widths), chunks_of(shape.vocab)
        pool = batch, shape.candidates
        return cls(
            shape,
            long(*pool),
            long(*pool),
            real(*pool),
            tuple(steps),
            long(rows, chunks, shape.children),
            real(rows, chunks),
            real(rows, chunks),
        )

    def first(self, batch: int) -> "DraftBuffers":
        """Views of the first `batch` requests' buffers; the scratch is shared."""
        steps = tuple(Step(*(value[:batch] for value in vars(step).values())) for step in self.steps)
        pool = self.tokens_BP[:batch], self.parents_BP[:batch], self.scores_BP[:batch]
        return DraftBuffers(self.shape, *pool, steps, self.best, self.largest, self.total)

    @property
    def candidates(self) -> Candidates:
        return Candidates(self.tokens_BP, self.parents_BP, self.scores_BP)


def chunk_of(vocab: int) -> int:
    """Logits that one program looks through: some dozen programs a row at every usual vocabulary."""
    return 2048 if vocab <= 1 << 15 else 4096 if vocab <= 1 << 17 else 8192


def chunks_of(vocab: int) -> int:
    return -(-vocab // chunk_of(vocab))
