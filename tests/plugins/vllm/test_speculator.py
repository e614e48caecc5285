"""What a server does when its graphs are captured: costs by every rank, and a chain where they cannot be had."""

import logging
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("vllm")

from eagle3_vllm import measure, speculator
from eagle3_vllm.compat import BatchExecutionDescriptor, CUDAGraphMode, InputBatch, TritonError
from eagle3_vllm.settings import Settings, read_trees
from eagle3_vllm.speculator import TreeSpeculator
from vllm.v1.worker.gpu.input_batch import InputBuffers

from eagle3_serving.serve.shape import Shape

TREES = read_trees("0;2,2,5")


class Graphs:
    def __init__(self, capture: Callable[[], None] = lambda: None) -> None:
        self.graphs = {"one": object()}
        self._capture, self.to_measure = capture, False

    def capture(self, *args: Any, **kwargs: Any) -> None:
        self._capture()

    capture_each = capture

    def release_graphs(self) -> None:
        self.graphs = {}


class Speculator(TreeSpeculator):
    def __init__(self, capture: Callable[[], None] = lambda: None, **settings: Any) -> None:
        self.settings = Settings(trees=TREES, **settings)
        self.trees: Any = SimpleNamespace(rows_a_request=17, depth=2, target_graphs=Graphs())
        self.whole_graphs, self.draft_graphs = Graphs(capture), Graphs()  # type: ignore[assignment]
        self.idx_mapping = self.last_token_indices = torch.zeros(3, dtype=torch.long)
        self.absorbed: Any = SimpleNamespace(prefix_B=torch.ones(3), drafting_B=torch.ones(3))
        self.model_state = self.target_input_buffers = self.block_tables = self.target_attn_groups = None
        self.kv_cache_config, self.fallback_shape = None, None


@pytest.mark.parametrize("first", [True, False])
def test_every_rank_replays_and_the_first_one_writes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, first: bool
) -> None:
    """A replay with tensor parallelism waits for the other ranks' replays."""
    replayed: list[int] = []
    monkeypatch.setattr(speculator, "replayed_costs", lambda _: replayed.append(1) or {1: {1: 2.0, 5: 3.0}})
    monkeypatch.setattr(speculator, "is_global_first_rank", lambda: first)
    monkeypatch.setattr(speculator, "costs_file", lambda: tmp_path / "costs")
    Speculator().capture()
    assert replayed == [1] and (tmp_path / "costs").exists() == first


def test_costs_that_cannot_be_written_are_a_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: Any) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(speculator, "replayed_costs", lambda _: {1: {1: 2.0, 5: 3.0}})
    monkeypatch.setattr(speculator, "is_global_first_rank", lambda: True)
    monkeypatch.setattr(speculator, "costs_file", lambda: tmp_path / "file" / "costs")
    monkeypatch.setattr(speculator.logger, "propagate", True)
    with caplog.at_level(logging.WARNING):
        Speculator().capture()
    assert "cannot be written" in caplog.text


def test_nothing_is_kept_of_what_vllm_captures_to_measure_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speculator, "replayed_costs", lambda _: pytest.fail("not now"))
    one = Speculator()
    one.trees.target_graphs.to_measure = True
    one.capture()
    assert one.trees.target_graphs is None


@pytest.mark.parametrize("error", [RuntimeError("CUDA out of memory\nmore"), TritonError()])
def test_where_graphs_cannot_be_captured_a_chain_is_drafted(error: Exception, caplog: Any, monkeypatch: Any) -> None:
    """No deeper than the server's trees: so deep masks are built."""

    def fail() -> None:
        raise error

    one = Speculator(fail)
    monkeypatch.setattr(speculator.logger, "propagate", True)
    with caplog.at_level(logging.WARNING):
        one.capture()
    assert one.fallback_shape == Shape.chain(2) and not one.whole_graphs.graphs  # type: ignore[union-attr]
    assert len(caplog.messages) == 1 and "\n" not in caplog.text.strip()
    one.whole_graphs, one.settings = Graphs(), Settings()  # type: ignore[assignment]
    one.capture()
    assert one.fallback_shape is None, "the next capture, with memory, went well"


class Played:
    """A graph that may only be replayed as the pass it was captured for, on what that pass was prepared with."""

    def __init__(self, world: "World", descriptor: BatchExecutionDescriptor) -> None:
        self.world, self.descriptor = world, descriptor

    def replay(self) -> None:
        world, requests, rows = self.world, self.descriptor.num_reqs, self.descriptor.uniform_token_count
        assert requests is not None and rows is not None
        assert world.planned == (requests, requests * rows), "FlashAttention's plan is another pass's"
        lengths_B = world.buffers.seq_lens.tolist()
        assert lengths_B == [300] * requests + [0] * (world.buffers.max_num_reqs - requests)
        assert world.prefix_B[:requests].tolist() == world.own_B[:requests].tolist() == [300 - rows] * requests
        assert 0 < world.table.max() < 5 and world.buffers.positions[: requests * rows].max() == 299
        world.played.append((requests, rows))


class World:
    """What a speculator's costs are measured on, as far as a replay reads it."""

    def __init__(self, max_num_reqs: int, trees: dict[int, Shape]) -> None:
        self.buffers = InputBuffers(max_num_reqs, 17 * max_num_reqs, torch.device("cpu"))
        self.table = torch.full((max_num_reqs, 8), 99, dtype=torch.int32)
        self.prefix_B, self.own_B = (torch.zeros(max_num_reqs, dtype=torch.int32) for _ in range(2))
        self.planned: tuple[int, int] | None = None
        self.played: list[tuple[int, int]] = []
        descriptors = [
            BatchExecutionDescriptor(CUDAGraphMode.FULL, batch * rows, batch, uniform_token_count=rows)
            for batch in (3, 1)
            for rows in (*trees, 7)  # of no tree: nothing follows it
        ]
        graphs = {descriptor: Played(self, descriptor) for descriptor in descriptors}
        after = {d: graph for d, graph in graphs.items() if d.uniform_token_count in trees}
        self.speculator = SimpleNamespace(
            trees=SimpleNamespace(
                max_model_len=300,
                shapes=trees,
                target_graphs=SimpleNamespace(graphs=graphs),
                buffers=lambda batch, rows: SimpleNamespace(prefix_B=self.prefix_B[:batch]),
            ),
            whole_graphs=SimpleNamespace(graphs=after),
            block_tables=SimpleNamespace(
                input_block_tables=[self.table],
                block_sizes=[64],
                get_dummy_block_tables=lambda count: (self.table[:count].zero_(),),
                get_dummy_slot_mappings=lambda tokens: torch.full((1, tokens), -1),
            ),
            absorbed=SimpleNamespace(prefix_B=self.own_B),
            target_input_buffers=self.buffers,
            kv_cache_config=SimpleNamespace(num_blocks=5),
            target_attn_groups=[],
            model_state=SimpleNamespace(prepare_attn=self.plan),
        )

    def plan(self, batch: InputBatch, mode: Any, *args: Any, for_capture: bool) -> None:
        assert mode == CUDAGraphMode.FULL and for_capture
        self.planned = batch.num_reqs, batch.num_tokens
        self.prefix_B.zero_()  # as where a graph's padding is nobody's


def test_each_graph_is_replayed_as_the_pass_it_was_captured_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """An H100 ended with an illegal access where all were replayed by one plan of attention, the last captured pass's."""
    trees = {1: Shape.nothing(1), 5: TREES[1], 17: Shape(5, 4, 17)}
    world = World(3, trees)
    timed: list[int] = []
    monkeypatch.setattr(measure, "_timed", lambda *graphs: ([g.replay() for g in graphs] and timed.append(1)) or 2.5)
    assert measure.replayed_costs(world.speculator) == {batch: dict.fromkeys(trees, 2.5) for batch in (3, 1)}
    assert len(timed) == measure.REPLAYS * 6 and len(world.played) == 2 * len(timed)
    assert {rows for _, rows in world.played} == set(trees)
