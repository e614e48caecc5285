"""The mask of a verify pass: dense, or packed to bits as FlashInfer's batch prefill wants it.

FlashInfer ("Mask Layout", docs.flashinfer.ai/tutorials/kv_layout.html) flattens each request's mask with the query
first and the key last, and packs it to bytes in little bit order, every request from a whole byte on
(`segment_packbits(..., bitorder="little")`). Its kernel (include/flashinfer/attention/variants.cuh) reads bit
`offset % 8` of byte `indptr[request] + offset // 8`, offset = query * keys + key.

Shape letters: B requests, R rows of a verify pass (row 0 is the root), S keys, T bytes; `indptr_B1` has B + 1 entries.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from eagle3_serving.tree.layout import TreeLayout


class PackedMask(NamedTuple):
    """`bytes_T` uint8, zero past the last request; request b's begin at `indptr_B1[b]`, int64.

    FlashInfer wants offsets in int32. Its `plan(packed_custom_mask=...)` computes them in bits and uses them as bytes
    (its pull request 2201): for more than one request the caller must put these in their place.
    """

    bytes_T: Tensor
    indptr_B1: Tensor


def dense_mask(layout: TreeLayout, committed_B: Tensor, width: int) -> Tensor:
    """Bool [B, R, width] of a layout in row space: a row sees the committed keys, the rows above it and itself.

    Key j < `committed_B[b]` is committed, key `committed_B[b]` + i is row i. Of the rows, PADDING sees itself alone.
    """
    batch, rows = layout.parents_BN.shape
    row_BS = torch.arange(width, device=committed_B.device) - committed_B[:, None]
    index_BRS = row_BS.clamp(0, rows - 1)[:, None].expand(batch, rows, width)
    above_BRS = layout.ancestors_BNN.gather(2, index_BRS) & (row_BS < rows)[:, None]
    return (row_BS < 0)[:, None] | above_BRS


def packed_bytes(committed: int, rows: int) -> int:
    """How many bytes one request's packed mask takes."""
    return (rows * (committed + rows) + 7) // 8


def pack_mask(layout: TreeLayout, committed_B: Tensor, rows_B: Tensor, total_bytes: int) -> PackedMask:
    """The first `rows_B[b]` rows of a request's dense mask, `committed_B[b]` + `rows_B[b]` keys wide, packed to bits.

    `total_bytes` is at least the sum of `packed_bytes` over the requests: the size is the caller's, so that nothing
    waits for the device.
    """
    batch, most_rows = layout.parents_BN.shape
    keys_B = committed_B + rows_B
    indptr_B1 = pad(((rows_B * keys_B + 7) // 8).cumsum(0), (1, 0))
    byte_T = torch.arange(total_bytes, device=committed_B.device)
    # bytes past the end count to the last request, where they lie below its last row and stay zero
    request_T = torch.searchsorted(indptr_B1[1:], byte_T, right=True).clamp(max=batch - 1)
    first_bit_T = (byte_T - indptr_B1[request_T]) * 8
    committed_T, rows_T = committed_B[request_T], rows_B[request_T]
    keys_T = keys_B[request_T].clamp(min=1)
    packed_T = torch.zeros_like(byte_T, dtype=torch.uint8)
    # bit by bit: all eight at once would hold eight times the memory
    for bit in range(8):
        row_T = (first_bit_T + bit) // keys_T
        other_T = (first_bit_T + bit) % keys_T - committed_T
        above_T = layout.ancestors_BNN[request_T, row_T.clamp(max=most_rows - 1), other_T.clamp(0, most_rows - 1)]
        seen_T = (row_T < rows_T) & ((other_T < 0) | above_T)
        packed_T = packed_T + seen_T.to(torch.uint8) * (1 << bit)
    return PackedMask(packed_T, indptr_B1)
