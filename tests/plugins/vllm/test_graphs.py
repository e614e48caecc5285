"""Which of a server's passes find a CUDA graph: every graph that vLLM is told to replay was captured."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("vllm")

from eagle3_vllm.compat import CUDAGraphMode
from eagle3_vllm.graphs import DraftDescriptor, DraftGraphs, TargetGraphs, buckets
from eagle3_vllm.trees import planned_inside

from eagle3_serving.serve.shape import Shape

PLAIN, CHAIN, TREE, LARGE = Shape.nothing(1), Shape.chain(4), Shape(5, 4, 17), Shape(8, 10, 61)
SIZES = [1, 2, 4, *range(8, 257, 8), *range(272, 513, 16)]  # vLLM's own


def made(kind: Any, shapes: list[Shape], sequences: int, rows: int) -> Any:
    """A manager whose graphs are as if they were captured; vLLM's own constructor asks for a GPU's pool."""
    manager = kind.__new__(kind)
    vars(manager).update(
        trees=SimpleNamespace(shapes={shape.tokens: shape for shape in shapes}, ragged=False),
        vllm_config=SimpleNamespace(
            speculative_config=None,
            scheduler_config=SimpleNamespace(max_num_batched_tokens=rows),
            cache_config=SimpleNamespace(use_kda_recoverssm=False),
        ),
        compilation_config=SimpleNamespace(cudagraph_capture_sizes=SIZES, max_cudagraph_capture_size=SIZES[-1]),
        cudagraph_mode=CUDAGraphMode.FULL_AND_PIECEWISE,
        max_num_reqs=sequences,
        decode_query_len=max(shape.tokens for shape in shapes),
        lora_capture_cases=[0],
        _lora_dispatch_map={},
        varlen_decode=False,
        ubatch_runner=None,
        _candidates={},
        _capture_descs={},
        _graphs_captured=True,
    )
    manager._init_candidates()
    return manager


@pytest.mark.parametrize("shapes", [[CHAIN], [PLAIN, CHAIN, TREE], [TREE], [LARGE], [PLAIN, TREE, LARGE]])
@pytest.mark.parametrize("sequences, rows", [(256, 8192), (100, 8192), (24, 2048), (256, 96)])
def test_what_is_found_was_captured(shapes: list[Shape], sequences: int, rows: int) -> None:
    manager = made(TargetGraphs, shapes, sequences, rows)
    captured, served = set(manager._capture_descs[CUDAGraphMode.FULL]), set()
    for shape in (*shapes, Shape(3, 2, 7)):  # drafts that were cut are as wide as no tree
        for batch in range(1, sequences + 1):
            found = manager.dispatch(batch, batch * shape.tokens, shape.tokens, 0)
            if found.cg_mode != CUDAGraphMode.FULL:
                continue
            assert found in captured, f"{batch} requests of {shape.tokens} rows replay what is no graph"
            assert found.uniform_token_count == shape.tokens and found.num_reqs >= batch
            served.add((shape, batch))
    assert all((shape, 1) in served for shape in shapes)
    assert not any(shape.tokens == 7 for shape, _ in served)


def test_a_prompt_finds_no_graph_of_trees() -> None:
    manager = made(TargetGraphs, [PLAIN, TREE], 64, 8192)
    assert manager.dispatch(2, 34, None, 0).cg_mode == CUDAGraphMode.PIECEWISE


def test_outputs_have_room_for_the_largest_graph() -> None:
    """vLLM makes them of the first pass that it captures: its own largest size, where a tree's is larger."""
    manager = made(TargetGraphs, [PLAIN, LARGE], 64, 8192)
    manager.hidden_states, manager.aux_hidden_states = None, []  # as vLLM's constructor leaves them
    assert manager.hidden_states is None and not manager.aux_hidden_states
    first_TH = torch.ones(SIZES[-1], 3, dtype=torch.bfloat16)
    manager.hidden_states, manager.aux_hidden_states = first_TH, [first_TH, first_TH]
    largest = max(descriptor.num_tokens for descriptor in manager._capture_descs[CUDAGraphMode.FULL])
    assert largest == 32 * 61 > len(first_TH)
    for kept_TH in (manager.hidden_states, *manager.aux_hidden_states):
        kept_TH[:largest] = torch.zeros(largest, 3)
        assert kept_TH.dtype == torch.bfloat16
    assert manager.aux_hidden_states[0].data_ptr() != manager.aux_hidden_states[1].data_ptr()


def test_a_draft_takes_the_next_larger_batch() -> None:
    graphs = DraftGraphs.__new__(DraftGraphs)
    sizes = {"cg_mode": CUDAGraphMode.FULL, "uniform_token_count": 1}
    descriptors = [DraftDescriptor(num_tokens=n, num_reqs=n, tokens=t, **sizes) for n in buckets(24) for t in (5, 17)]
    graphs.graphs = dict.fromkeys(descriptors, object())
    found = [graphs.find(batch, TREE) for batch in (1, 3, 9, 17, 24)]
    assert [(d.num_reqs, d.tokens) for d in found if d is not None] == [(1, 17), (4, 17), (16, 17), (24, 17), (24, 17)]
    assert graphs.find(25, TREE) is None and graphs.find(1, LARGE) is None


def test_flash_attentions_plan_of_the_host_does_not_go_into_a_graph() -> None:
    planned, other = SimpleNamespace(scheduler_metadata=object(), max_num_splits=4), SimpleNamespace()
    planned_inside({"draft": planned, "another backend": other})
    assert (planned.scheduler_metadata, planned.max_num_splits) == (None, 0) and not vars(other)
    assert planned_inside(None) is None
