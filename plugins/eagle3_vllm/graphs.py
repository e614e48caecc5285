"""CUDA graphs of a server with trees, kept by vLLM's own managers: what is captured for which batch, and what runs as one.

The target's pass is captured by vLLM for uniform batches (every request as many rows as its tree has), or, where the batch
has one budget, for any mix of rows (`varlen_decode`). Behind it two kinds of ours: the drafter's pass over the verified
rows with the whole draft (`SpeculatorCudaGraphManager`, one for each of the target's), and the draft alone, for batches in
which prompts are read too. Both are made in vLLM's global pool, dropped and made again when vLLM measures memory.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from eagle3_serving.serve.shape import Shape
from eagle3_vllm.compat import (
    BatchExecutionDescriptor,
    CudaGraphManager,
    CUDAGraphMode,
    ModelCudaGraphManager,
    SpeculatorCudaGraphManager,
)
from eagle3_vllm.trees import Trees

# of requests in a graph where several trees are captured: each is another dimension of them
BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
# what runs where there is no CUDA is told what would be one graph there: for tests that count
observers: list[Callable[[str], AbstractContextManager[None]]] = []


@contextmanager
def region(name: str) -> Iterator[None]:
    """What a CUDA graph would hold, run as it stands."""
    with ExitStack() as stack:
        for observe in observers:
            stack.enter_context(observe(name))
        yield


def full_decode(mode: Any) -> Any:
    """The mode of a graph that only decoding steps have."""
    return CUDAGraphMode.FULL_DECODE_ONLY if mode.decode_mode() == CUDAGraphMode.FULL else CUDAGraphMode.NONE


def capture_sizes(trees: tuple[Shape, ...], max_num_seqs: int, most: int) -> list[int]:
    """Numbers of tokens to capture, `most` the largest: vLLM's own of up to 256, and those of whole batches of each tree."""
    usual = [1, 2, 4, *range(8, 257, 8)]
    batches = sorted({*(b for b in BUCKETS if b < max_num_seqs), max_num_seqs})
    decode = [batch * shape.tokens for shape in trees for batch in batches]
    return sorted({size for size in (*usual, *decode) if size <= most})


class _Served(CudaGraphManager):
    """Of all pairs of a batch and a number of rows, those that can be met."""

    trees: Trees

    def _init_candidates(self) -> None:
        super()._init_candidates()
        if len(self.trees.shapes) == 1:
            return
        for mode, descriptors in self._capture_descs.items():
            self._capture_descs[mode] = [d for d in descriptors if self._is_met(d)]
        for key, candidates in self._candidates.items():
            self._candidates[key] = [d for d in candidates if self._is_met(d)]

    def _is_met(self, descriptor: Any) -> bool:
        rows = descriptor.uniform_token_count
        if rows is None:
            return True
        batch = descriptor.num_reqs
        return rows in self.trees.shapes and (batch in BUCKETS or batch == self.max_num_reqs)


class TargetGraphs(_Served, ModelCudaGraphManager):
    """vLLM's own of the target."""

    def __init__(self, trees: Trees, *args: Any, **kwargs: Any) -> None:
        self.trees = trees
        trees.target_graphs = self
        kwargs["varlen_decode"] = kwargs.get("varlen_decode", False) or trees.ragged
        super().__init__(*args, **kwargs)


class WholeGraphs(_Served, SpeculatorCudaGraphManager):
    """The drafter's pass over the verified rows, and the draft of the same tree after it."""

    def __init__(self, trees: Trees, vllm_config: Any, device: Any, mode: Any) -> None:
        self.trees = trees
        super().__init__(vllm_config, device, full_decode(mode), trees.rows_a_request, varlen_decode=trees.ragged)


@dataclass(frozen=True)
class DraftDescriptor(BatchExecutionDescriptor):
    tokens: int = 0  # of the tree


class DraftGraphs(CudaGraphManager):
    """The draft alone, for each tree and batch size."""

    def __init__(self, trees: Trees, vllm_config: Any, device: Any, mode: Any) -> None:
        self.shapes = [shape for shape in trees.shapes.values() if shape.drafts]
        super().__init__(vllm_config, device, full_decode(mode), decode_query_len=1)
        for found, descriptors in self._capture_descs.items():
            met = [d for d in descriptors if d.num_reqs in BUCKETS or d.num_reqs == self.max_num_reqs]
            self._capture_descs[found] = [
                DraftDescriptor(**vars(d), tokens=shape.tokens) for d in met for shape in self.shapes
            ]

    def capture_each(self, draft: Callable[[Shape, int], None]) -> None:
        """`draft` of every tree for every number of requests."""
        shapes = {shape.tokens: shape for shape in self.shapes}

        def create(descriptor: DraftDescriptor, warmup: bool) -> Callable[[Any], None]:
            return lambda mode: draft(shapes[descriptor.tokens], descriptor.num_reqs)

        self.capture(create, "Capturing CUDA graphs of drafts")

    def find(self, batch: int, shape: Shape) -> DraftDescriptor | None:
        """The smallest graph for a batch; None where there is none."""
        fitting = [d for d in self.graphs if d.tokens == shape.tokens and d.num_reqs >= batch]
        return min(fitting, key=lambda d: d.num_reqs, default=None)
