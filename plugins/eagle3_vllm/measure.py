"""What a step of every tree costs at every batch size, by replaying the graphs that were just captured: some seconds.

As vLLM's own adaptive verification does it, with a synthetic context. The graphs write into buffers of passes and drafts
that nobody looks at before the first request fills them.
"""

import statistics
from typing import Any

import torch

from eagle3_vllm.compat import CUDAGraphMode, InputBatch, set_dummy_context

REPLAYS = 5
CONTEXT = 1024  # tokens of every request


def replayed_costs(speculator: Any) -> dict[int, dict[int, float]]:
    """Requests -> tokens of a tree -> milliseconds of the target's graph and of what follows it."""
    trees, target = speculator.trees, speculator.trees.target_graphs
    costs: dict[int, dict[int, float]] = {}
    for descriptor, graph in target.graphs.items():
        after = speculator.whole_graphs.graphs.get(descriptor)
        if after is None or descriptor.uniform_token_count not in trees.shapes:
            continue
        _prepare(speculator, descriptor)
        milliseconds = statistics.median(_timed(graph, after) for _ in range(REPLAYS))
        costs.setdefault(descriptor.num_reqs, {})[descriptor.uniform_token_count] = milliseconds
    return costs


def _timed(*graphs: Any) -> float:
    begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begun.record()
    for graph in graphs:
        graph.replay()
    ended.record()
    ended.synchronize()
    return begun.elapsed_time(ended)


def _prepare(speculator: Any, descriptor: Any) -> None:
    """What a pass of this size finds: lengths, pages that lie apart, and FlashAttention's plan, which another size's would send
    outside its buffers."""
    trees, tables, config = speculator.trees, speculator.block_tables, speculator.kv_cache_config
    sizes = descriptor.num_reqs, descriptor.num_tokens, speculator.target_input_buffers
    batch = InputBatch.make_dummy(*sizes, max_query_len=descriptor.uniform_token_count)
    at = tables.get_dummy_block_tables(descriptor.num_reqs), tables.get_dummy_slot_mappings(descriptor.num_tokens)
    set_dummy_context(batch, tables, CONTEXT, config.num_blocks, trees.max_model_len)
    speculator.model_state.prepare_attn(
        batch, CUDAGraphMode.FULL, *at, speculator.target_attn_groups, config, for_capture=True
    )
    # nobody's request has a tree: what was prepared for one has no prefix
    prefix_B = batch.seq_lens - descriptor.uniform_token_count
    trees.buffers(descriptor.num_reqs, descriptor.uniform_token_count).prefix_B.copy_(prefix_B)
    speculator.absorbed.prefix_B[: descriptor.num_reqs].copy_(prefix_B)
