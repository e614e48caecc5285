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

from torch import Tensor

from eagle3_serving.serve.shape import Shape
from eagle3_vllm.compat import (
    BatchExecutionDescriptor,
    CudaGraphManager,
    CUDAGraphMode,
    ModelCudaGraphManager,
    SpeculatorCudaGraphManager,
)
from eagle3_vllm.trees import Trees

# requests in a graph: a batch takes the next larger
BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
MOST_ROWS = 2048  # of a graph: past that the GPU computes longer than the host takes to launch
# what runs where there is no CUDA is told what would be one graph there: for tests that count
observers: list[Callable[[str], AbstractContextManager[None]]] = []


@contextmanager
def region(name: str) -> Iterator[None]:
    """What a CUDA graph would hold, run as it stands."""
    with ExitStack() as stack:
        for observe in observers:
            stack.enter_context(observe(name))
        yield


def buckets(most: int) -> list[int]:
    """Requests in a graph, up to `most`."""
    return [*(size for size in BUCKETS if size < most), most]


def full_decode(mode: Any) -> Any:
    """The mode of a graph that only decoding steps have."""
    return CUDAGraphMode.FULL_DECODE_ONLY if mode.decode_mode() == CUDAGraphMode.FULL else CUDAGraphMode.NONE


class _Served(CudaGraphManager):
    """Its graphs of decoding steps are those that can be met: every tree of the server, for as many requests as `BUCKETS`.
    vLLM's own list of sizes ends at 512 rows, and knows only the trees that its schedule names at the moment."""

    trees: Trees

    def _init_candidates(self) -> None:
        super()._init_candidates()
        if not self.cudagraph_mode or self.cudagraph_mode.decode_mode() != CUDAGraphMode.FULL or self.trees.ragged:
            return
        if self.cudagraph_mode.mixed_mode() == CUDAGraphMode.FULL:
            return  # one routine for all batches: nothing is told apart
        full = [
            BatchExecutionDescriptor(
                cg_mode=CUDAGraphMode.FULL,
                num_tokens=batch * shape.tokens,
                num_reqs=batch,
                uniform_token_count=shape.tokens,
            )
            for shape in self.trees.shapes.values()
            for batch in buckets(self.max_num_reqs)
            if batch * shape.tokens <= self._most_rows(shape)
        ]
        full.sort(key=lambda descriptor: descriptor.num_tokens)
        self._capture_descs[CUDAGraphMode.FULL] = full[::-1]
        # vLLM's own full graphs are not captured, so none may be found, past the largest of ours either
        met = max([tokens for tokens, _ in self._candidates] + [d.num_tokens for d in full], default=0)
        for tokens in range(met + 1):
            others = [d for d in self._candidates.get((tokens, 0), []) if d.cg_mode != CUDAGraphMode.FULL]
            self._candidates[tokens, 0] = [*full, *others]

    def _most_rows(self, shape: Shape) -> int:
        """A pass without a mask goes by vLLM's own plan of its attention, which it makes for graphs of its own sizes only."""
        scheduler, compilation = self.vllm_config.scheduler_config, self.compilation_config
        most = MOST_ROWS if shape.top_k > 1 else (compilation.max_cudagraph_capture_size or 0)
        return min(most, scheduler.max_num_batched_tokens)


class TargetGraphs(_Served, ModelCudaGraphManager):
    """vLLM's own of the target. Its outputs are kept in buffers that vLLM sizes by the first pass it captures; here one of the
    largest graph's size is made, for ours may be larger."""

    def __init__(self, trees: Trees, *args: Any, **kwargs: Any) -> None:
        self.trees = trees
        self._hidden_states: Tensor | None = None
        self._aux_hidden_states: list[Tensor] = []
        trees.target_graphs = self
        kwargs["varlen_decode"] = kwargs.get("varlen_decode", False) or trees.ragged
        super().__init__(*args, **kwargs)

    @property
    def hidden_states(self) -> Tensor | None:
        return self._hidden_states

    @hidden_states.setter
    def hidden_states(self, first_TH: Tensor | None) -> None:
        self._hidden_states = None if first_TH is None else self._for_all(first_TH)

    @property
    def aux_hidden_states(self) -> list[Tensor]:
        return self._aux_hidden_states

    @aux_hidden_states.setter
    def aux_hidden_states(self, first: list[Tensor]) -> None:
        self._aux_hidden_states = [self._for_all(first_TH) for first_TH in first]

    def _for_all(self, first_TH: Tensor) -> Tensor:
        sizes = (descriptor.num_tokens for descriptors in self._capture_descs.values() for descriptor in descriptors)
        return first_TH.new_empty((max([len(first_TH), *sizes]), *first_TH.shape[1:]))

    @property
    def to_measure(self) -> bool:
        """Whether vLLM captures a few of them to measure memory, and drops them."""
        return self._max_full_descs_to_capture is not None


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
            met = [d for d in descriptors if d.num_reqs in buckets(self.max_num_reqs)]
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
