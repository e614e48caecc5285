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
from eagle3_vllm.compat import TritonError
from eagle3_vllm.settings import Settings, read_trees
from eagle3_vllm.speculator import TreeSpeculator

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


def test_a_replay_meets_lengths_and_pages_that_are_there() -> None:
    tables = SimpleNamespace(input_block_tables=[torch.full((3, 8), 99, dtype=torch.int32)])
    prefix_B, own_B = torch.zeros(3, dtype=torch.int32), torch.zeros(3, dtype=torch.int32)
    one = SimpleNamespace(
        trees=SimpleNamespace(
            max_model_len=300, rows_a_request=17, buffers=lambda *_: SimpleNamespace(prefix_B=prefix_B)
        ),
        block_tables=tables,
        max_num_reqs=3,
        absorbed=SimpleNamespace(prefix_B=own_B),
        target_input_buffers=SimpleNamespace(seq_lens=torch.zeros(3, dtype=torch.int32)),
        kv_cache_config=SimpleNamespace(num_blocks=5),
    )
    measure._fill(one)
    assert prefix_B.tolist() == own_B.tolist() == [283] * 3
    assert one.target_input_buffers.seq_lens.tolist() == [300] * 3
    assert tables.input_block_tables[0].max() < 5
