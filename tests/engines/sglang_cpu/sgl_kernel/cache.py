"""Where keys and values of requests stand: `req_to_token` [P, S] holds the cache slot of each position of each request.

Shape letters: B requests, P rows of the pool, S positions, T rows of all requests together, K branches, N draft steps.
"""

import ctypes

import numpy as np
import torch
from torch import Tensor


def _spans(requests_B: Tensor, start_B: Tensor, end_B: Tensor) -> tuple[Tensor, Tensor]:
    """Pool row [T] and position [T] of every position in [start, end) of each request, request after request."""
    count_B = (end_B - start_B).long()
    row_T = requests_B.long().repeat_interleave(count_B)
    first_T = (count_B.cumsum(0) - count_B).repeat_interleave(count_B)
    place_T = torch.arange(len(row_T)) - first_T + start_B.long().repeat_interleave(count_B)
    return row_T, place_T


def assign_req_to_token_pool_cpu(
    req_pool_indices: Tensor,
    req_to_token: Tensor,
    start_offset: Tensor,
    end_offset: Tensor,
    out_cache_loc: Tensor,
    pool_len: int,
) -> None:
    """Writes `out_cache_loc` [T] into positions [start, end) of each request."""
    row_T, place_T = _spans(req_pool_indices, start_offset, end_offset)
    req_to_token[row_T, place_T] = out_cache_loc[: len(row_T)].to(req_to_token.dtype)


def assign_extend_cache_locs_cpu(
    req_pool_indices: Tensor,
    req_to_token: Tensor,
    start_offset: Tensor,
    end_offset: Tensor,
    out_cache_loc: Tensor,
    pool_len: int,
) -> None:
    """Reads the slots of positions [start, end) of each request into `out_cache_loc` [T]."""
    row_T, place_T = _spans(req_pool_indices, start_offset, end_offset)
    out_cache_loc[: len(row_T)] = req_to_token[row_T, place_T].to(out_cache_loc.dtype)


def assign_draft_cache_locs_contiguous_cpu(
    req_pool_indices: Tensor,
    req_to_token: Tensor,
    seq_lens: Tensor,
    out_cache_loc: Tensor,
    pool_len: int,
    topk: int,
    num_steps: int,
) -> None:
    """The `topk * num_steps` slots after each request's end, branch after branch."""
    assign_extend_cache_locs_cpu(
        req_pool_indices, req_to_token, seq_lens, seq_lens + topk * num_steps, out_cache_loc, pool_len
    )


def build_draft_decode_metadata_cpu(
    req_to_token: Tensor, req_pool_indices: Tensor, seq_lens: Tensor, topk: int, num_steps: int, pool_len: int
) -> Tensor:
    """[B * K, pool_len] slots that each branch sees: its request's own, then the branch's `num_steps` draft slots."""
    table_BS = req_to_token[req_pool_indices.long(), :pool_len]
    place_S = torch.arange(pool_len)
    after_BS = place_S - seq_lens.long()[:, None]
    branch_K = torch.arange(topk)
    # position seq_len + i of branch k is the pool's position seq_len + k * num_steps + i
    source_BKS = place_S + (after_BS[:, None] >= 0) * (branch_K[:, None] * num_steps)
    seen_BKS = after_BS[:, None].expand(-1, topk, -1) < num_steps
    slots_BKS = table_BS[:, None].expand(-1, topk, -1).gather(2, source_BKS.clamp(max=pool_len - 1))
    return torch.where(seen_BKS, slots_BKS, 0).flatten(0, 1)


def fill_accept_out_cache_loc_cpu(accept_index: Tensor, out_cache_loc: Tensor, accept_out_cache_loc: Tensor) -> None:
    """The slots of the accepted rows (`accept_index`, -1 where none), packed to the front."""
    kept_T = accept_index.flatten()
    kept_T = kept_T[kept_T > -1].long()
    accept_out_cache_loc[: len(kept_T)] = out_cache_loc[kept_T]


def copy_all_layer_kv_cache_cpu(data_ptrs: Tensor, strides: Tensor, tgt_loc: Tensor, src_loc: Tensor) -> None:
    """In every buffer (`data_ptrs` addresses, `strides` bytes a row) row `src_loc[i]` is copied to `tgt_loc[i]`.

    All rows are read before one is written: a source may be another row's target. Rows that stay where they are, as every
    one does after a step that drafted nothing, cost nothing.
    """
    source, destination = src_loc.numpy(), tgt_loc.numpy()
    source, destination = source[moves := source != destination], destination[moves]
    if not len(source):
        return
    rows = int(max(source.max(), destination.max())) + 1
    for address, stride in zip(data_ptrs.tolist(), strides.tolist(), strict=True):
        memory = (ctypes.c_char * (rows * stride)).from_address(address)
        buffer = np.frombuffer(memory, dtype=np.uint8).reshape(rows, stride)
        buffer[destination] = buffer[source]
