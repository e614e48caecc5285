"""What follows a pass where a draft is a graph of its own, or none: neither padding nor an earlier batch is taken for this one."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from batches import DEVICE, SLOTS, Batch, uniform_batch, varlen_batch
from eagle3_vllm.kernels.absorb import AbsorbBuffers
from eagle3_vllm.speculator import TreeSpeculator
from torch import Tensor

from eagle3_serving.serve.shape import Shape

NODES = 4
TREE, CHAIN, NOTHING = Shape(2, 2, 5), Shape.chain(2), Shape.nothing(1)
STALE = 3  # a slot that an earlier batch has left in the buffers


class Speculator(TreeSpeculator):
    """Everything but the passes themselves, which only note what they are told."""

    def __init__(self, batch: Batch, padded: int, graph: int | None, whole: bool = True) -> None:
        requests = batch.requests
        path_BD = torch.full((SLOTS, 2), -1, device=DEVICE)
        shapes = {4: TREE, 2: CHAIN, 0: NOTHING}
        self.trees: Any = SimpleNamespace(
            requests=requests, rows=None, whole=whole, path_BD=path_BD, rows_a_request=NODES + 1, shape=shapes.get
        )
        self.trees.target_graphs, self.trees.wide_noise = None, False
        self.temperature = torch.zeros(SLOTS, device=DEVICE)
        self.seeds = torch.zeros(SLOTS, dtype=torch.long, device=DEVICE)
        self.absorbed = AbsorbBuffers.make(SLOTS, batch.tokens + 9, DEVICE)
        self.absorbed.slots_B.fill_(STALE)
        self.absorbed.drafting_B.fill_(True)
        self.absorbed.prefix_B.fill_(99)
        self.absorbed.order_T.fill_(batch.tokens + 7)  # no row of this pass
        self.draft_tokens = torch.full((SLOTS, NODES), -1, device=DEVICE)
        self.last_token_indices, self.max_model_len = self.absorbed.last_B, 1000
        self.hidden_BH = self.feedback_BH = torch.zeros(SLOTS, 2, device=DEVICE)
        found = None if graph is None else SimpleNamespace(num_reqs=graph)
        self.draft_graphs: Any = SimpleNamespace(find=lambda *_: found, run_fullgraph=lambda _: None)
        self.whole_graphs, self.fallback_shape = None, None
        self.moved: list[int] = []
        self.batch, self.padded = batch, padded

    def _move(self, batch: int) -> None:
        self.moved.append(batch)

    def _absorb(self, tokens: int, features: Any, *args: Any) -> tuple[Tensor, Tensor]:
        ordered = args[2]
        assert self.absorbed.order_T[:ordered].lt(self.batch.tokens).all(), "a row that is none of this pass"
        states = features[0][:, :2]
        return states, states

    def _draft(self, *args: Any) -> None:
        """No draft."""

    def drafted(self, nodes: int) -> Tensor:
        batch = self.batch
        rows = torch.zeros(self.padded, 3, device=DEVICE)
        there = torch.ones(batch.real, dtype=torch.int32, device=DEVICE)
        told: Any = SimpleNamespace(
            num_reqs=batch.real,
            num_tokens=batch.tokens,
            num_tokens_after_padding=self.padded,
            num_scheduled_tokens=batch.length_B.numpy(),
            query_start_loc=batch.query_start_B1.int().to(DEVICE),
            cu_num_logits=batch.cu_num_logits_B1.int().to(DEVICE),
            input_ids=torch.zeros(self.padded, dtype=torch.int32, device=DEVICE),
            seq_lens=batch.seq_lens_B.to(DEVICE),
        )
        ids = torch.zeros(SLOTS, dtype=torch.long, device=DEVICE)
        return self.propose(
            told, {}, {}, rows, [rows], there, 0 * there, ids, ids, ids + 0.5, ids + 9, num_speculative_tokens=nodes
        )


@pytest.mark.parametrize("uniform", [True, False])
def test_a_larger_graph_drafts_for_nobody_else(uniform: bool) -> None:
    """Three requests and a graph of seven: no tree of an earlier batch is drawn again, none of its rows moved."""
    gen = torch.Generator().manual_seed(5)
    batch = uniform_batch(3, 3, NODES + 1, gen) if uniform else varlen_batch(3, 3, NODES + 1, gen)
    speculator = Speculator(batch, batch.tokens, graph=7, whole=uniform)
    speculator.drafted(NODES)
    absorbed = speculator.absorbed
    assert absorbed.slots_B[:3].tolist() == batch.slots_B.tolist() and absorbed.drafting_B[:3].all()
    assert absorbed.slots_B[3:].eq(-1).all() and absorbed.prefix_B[3:].eq(0).all() and not absorbed.drafting_B[3:].any()
    assert speculator.moved == [3]


@pytest.mark.parametrize("nodes", [NODES, 0])
def test_rows_that_fill_a_piecewise_graph_are_not_read(nodes: int) -> None:
    batch = uniform_batch(3, 3, NODES + 1, torch.Generator().manual_seed(5))
    speculator = Speculator(batch, padded=16, graph=None)
    speculator.drafted(nodes)
    assert speculator.moved == [3]


@pytest.mark.parametrize("nodes, instead, left", [(NODES, CHAIN, 2), (0, CHAIN, 0), (NODES, None, NODES)])
def test_past_a_tree_s_nodes_every_token_is_one(nodes: int, instead: Shape | None, left: int) -> None:
    """vLLM has written -1 where it asked for less before, and an embedding has no such row."""
    batch = uniform_batch(3, 3, NODES + 1, torch.Generator().manual_seed(5))
    speculator = Speculator(batch, batch.tokens, graph=None)
    speculator.fallback_shape = instead
    assert speculator.drafted(nodes)[:, left:].eq(0).all()
    assert speculator.draft_tokens[3:].eq(-1).all() and speculator.draft_tokens[:, :left].eq(-1).all()


@pytest.mark.parametrize("shared", [True, False])
def test_what_the_sampler_draws_by_is_kept_for_the_graphs(shared: bool) -> None:
    batch = uniform_batch(3, 3, NODES + 1, torch.Generator().manual_seed(5))
    speculator = Speculator(batch, batch.tokens, graph=7)
    speculator.trees.wide_noise = False if shared else None
    kept = speculator.temperature, speculator.seeds
    speculator.drafted(NODES)
    assert speculator.temperature is kept[0] and speculator.seeds is kept[1]
    assert kept[0].eq(0.5 * shared).all() and kept[1].eq(9 * shared).all()
