"""What a step of every tree costs at every batch size, by replaying the graphs that were just captured: some seconds.

As vLLM's own adaptive verification does it, with a synthetic context. The graphs write into buffers of passes and drafts
that nobody looks at before the first request fills them.
"""

import statistics
from typing import Any

import torch

REPLAYS = 5
CONTEXT = 1024  # tokens of every request


def replayed_costs(speculator: Any) -> dict[int, dict[int, float]]:
    """Requests -> tokens of a tree -> milliseconds of the target's graph and of what follows it."""
    trees, target = speculator.trees, speculator.trees.target_graphs
    _fill(speculator)
    costs: dict[int, dict[int, float]] = {}
    for descriptor, graph in target.graphs.items():
        after = speculator.whole_graphs.graphs.get(descriptor)
        if after is None or descriptor.uniform_token_count not in trees.shapes:
            continue
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


def _fill(speculator: Any) -> None:
    """A context for every request: lengths, and pages that lie apart."""
    trees, tables = speculator.trees, speculator.block_tables
    context = min(CONTEXT, trees.max_model_len - trees.rows_a_request)
    trees.buffers(speculator.max_num_reqs, trees.rows_a_request).prefix_B.fill_(context)
    speculator.absorbed.prefix_B.fill_(context)
    speculator.target_input_buffers.seq_lens.fill_(context + trees.rows_a_request)
    pages = speculator.kv_cache_config.num_blocks
    for table_SN in tables.input_block_tables:
        places = torch.arange(table_SN.numel(), device=table_SN.device, dtype=table_SN.dtype)
        table_SN.copy_((places % pages).view_as(table_SN))
