"""The trees of the requests in flight: drafted after one target pass, verified by the next.

Shape letters: S request slots, B requests of a pass, R tree rows (root first), K nodes, D depths, G KV groups, T rows of a
pass.
"""

import copy
import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from eagle3_serving.serve.shape import Shape
from eagle3_serving.tree import PADDING
from eagle3_vllm.compat import InputBatch, VllmConfig, is_global_first_rank
from eagle3_vllm.kernels.accept import AcceptBuffers
from eagle3_vllm.kernels.begin import TreeBuffers, begin
from eagle3_vllm.kernels.requests import Requests
from eagle3_vllm.metrics import Tally
from eagle3_vllm.settings import Settings
from eagle3_vllm.shapes import shape_of, shapes_of


@dataclass(frozen=True)
class PassRows:
    """The trees that attention looks at in one pass, padding of a CUDA graph included.

    `whole`: the pass has no other rows, request b's are `starts_B1[b]` to `starts_B1[b + 1]`, and unless the server's batches
    have one budget every request has as many (near its longest text one is given fewer). `longest`: no prefix is longer.
    """

    trees: TreeBuffers
    starts_B1: Tensor
    whole: bool
    longest: int

    def repeated(self) -> tuple[Tensor, Tensor]:
        """Rows of the pass [B, R] and what each sees [B, R, R], where every request shall have R: past its own its last one
        again, mask and all, so that whatever is written twice is written alike."""
        index_BR = self.trees.index_BR
        local_BR1 = (index_BR - index_BR[:, :1])[..., None]
        return index_BR, self.trees.mask_BRR.gather(1, local_BR1.expand_as(self.trees.mask_BRR))


class Trees:
    """What speculator, model state and sampler of one model runner share. Buffers keep their places, so that a CUDA graph
    may hold on to them."""

    def __init__(self, config: VllmConfig, settings: Settings, device: torch.device) -> None:
        self.config, self.settings, self.device = config, settings, device
        slots, nodes = config.scheduler_config.max_num_seqs, config.num_speculative_tokens
        self.max_model_len = config.model_config.max_model_len
        schedule = config.speculative_config.num_speculative_tokens_per_batch_size or ()
        self.shapes = {shape.tokens: shape for shape in shapes_of(settings, nodes, [k for _, _, k in schedule])}
        self.rows_a_request = nodes + 1
        # vLLM's warm-up drafts as many nodes as there may be, whichever trees it will be asked for
        self.depth = max(shape.steps for shape in (*self.shapes.values(), self.shape(nodes)))
        self.ragged = settings.batch_nodes is not None  # requests of a batch have trees of different size
        # by Triton kernels; one budget for a batch is shared by the core's own operations
        self.by_kernels = (
            (device.type == "cuda" or settings.kernels == "1") and settings.kernels != "0" and not self.ragged
        )
        self.tally = Tally(device, is_global_first_rank())
        # one slot more than there are: padding of a CUDA graph writes there
        self.parents_SK = torch.full((slots + 1, nodes), PADDING, dtype=torch.long, device=device)
        self.only_chain_S = torch.zeros(slots + 1, dtype=torch.bool, device=device)
        self._buffers = TreeBuffers.make(slots, self.rows_a_request, device)
        self.accepted = AcceptBuffers.make(slots, 1, self.depth, device)
        self._nothing_BD = torch.full_like(self.accepted.rows_BD, -1)
        # of the pass in flight
        self.requests: Requests | None = None
        self.rows: PassRows | None = None  # None where nothing was drafted
        self.whole = True  # decoding steps alone
        self.longest = self.max_model_len  # no request of the pass has more rows
        self.wide_noise: bool | None = None  # the sampler's noise, where drafts go by it (`SharedNoise.wide`)
        self.target_graphs: Any = None  # vLLM's manager of the target's graphs, once there is one

    def shape(self, nodes: int) -> Shape:
        """The tree of that many nodes."""
        return self.shapes.get(nodes + 1) or shape_of(self.settings, nodes)

    def forget(self, slot: int, only_chain: bool) -> None:
        """A new request in `slot`: nothing is drafted for it yet."""
        self.parents_SK[slot] = PADDING
        self.only_chain_S[slot] = only_chain

    def begin(self, batch: InputBatch, full: bool, for_capture: bool) -> PassRows | None:
        """The rows of the pass that is about to run, where its attention needs a mask. `full`: it is a CUDA graph."""
        padded = batch.num_reqs_after_padding if full else batch.num_reqs
        drafts_B = batch.num_draft_tokens_per_req
        most = 0 if drafts_B is None else int(drafts_B.max())
        if full:
            self.whole, width = True, self.rows_a_request if self.ragged else batch.num_tokens_after_padding // padded
        else:
            rows_B = 1 if drafts_B is None else drafts_B + 1
            self.whole, width = bool((batch.num_scheduled_tokens == rows_B).all() and not batch.has_prefill), most + 1
        uniform = self.whole and not self.ragged and (full or batch.num_tokens == padded * width)
        starts_B1 = batch.query_start_loc[: padded + 1]
        if self.device.type == "cpu":  # a bound saves time there; a graph knows none but that of all texts
            self.longest = int(batch.seq_lens_cpu_upper_bound[:padded].max())
        self.requests = Requests(
            padded,
            0 if for_capture else batch.num_reqs,
            batch.idx_mapping,
            *(() if uniform else (starts_B1, batch.cu_num_logits)),
        )
        self.rows = None
        if width == 1 or not (full or most):
            return None
        trees = self.buffers(padded, width)
        chain = self.shape(width - 1).top_k == 1
        begin(self.parents_SK, self.requests, batch.seq_lens, self.depth, trees, batch.positions, chain)
        self.rows = PassRows(trees, starts_B1, self.whole and (uniform or self.ragged), self.longest)
        return None if chain else self.rows

    def passes(self) -> list[tuple[int, int]]:
        """(requests, rows a request) of every pass that may be all trees, in a graph or not: drafts that would end past the
        longest text are cut, so any width may come."""
        slots = self.parents_SK.shape[0] - 1
        return [(batch, rows) for rows in range(2, self.rows_a_request + 1) for batch in range(1, slots + 1)]

    def attention_way(self, implementation: type) -> Literal["flash", "split"]:
        """How attention over whole passes of trees is computed: FlashAttention's where it is there, since that has run on a
        GPU; where requests differ in width, by our own kernel alone."""
        if self.ragged or "Flash" not in implementation.__name__ or "Infer" in implementation.__name__:
            return "split"
        return self.settings.attention

    def buffers(self, batch: int, rows: int) -> TreeBuffers:
        """Trees of `rows` rows each, side by side."""
        all_of_them = self._buffers

        def part(x: Tensor, *shape: int) -> Tensor:
            return x.flatten()[: math.prod(shape)].view(shape)

        return TreeBuffers(
            part(all_of_them.parents_BR, batch, rows),
            part(all_of_them.depth_BR, batch, rows),
            part(all_of_them.mask_BRR, batch, rows, rows),
            part(all_of_them.index_BR, batch, rows),
            all_of_them.prefix_B[:batch],
        )

    @property
    def path_BD(self) -> Tensor:
        """Accepted rows of the pass, -1 past them."""
        return self._nothing_BD if self.rows is None else self.accepted.rows_BD


def planned_inside(attn_metadata: dict[str, Any] | None) -> dict[str, Any] | None:
    """For a pass of the drafter's inside a CUDA graph: FlashAttention plans there, not by what the host once planned."""
    for value in (attn_metadata or {}).values():
        if hasattr(value, "scheduler_metadata"):
            value.scheduler_metadata, value.max_num_splits = None, 0
    return attn_metadata


def without_rows(attn_metadata: dict[str, Any] | None) -> dict[str, Any] | None:
    """The same metadata for rows that are a text."""
    if not attn_metadata:
        return attn_metadata
    plain = {id(value): copy.copy(value) for value in attn_metadata.values()}
    for value in plain.values():
        value.eagle3_rows = None
    return {name: plain[id(value)] for name, value in attn_metadata.items()}
