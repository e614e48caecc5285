"""FlashInfer's two ways of a verify pass: its paged prefill under a packed tree mask, or over the prefix alone, merged.

Shape letters as in `verify_case.py`; P pages of a request.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from flashinfer import BatchPrefillWithPagedKVCacheWrapper  # type: ignore[import-not-found]
from torch import Tensor

from benchmarks.gpu.verify_case import Case
from eagle3_serving.attention import AttentionState, tree_attention
from eagle3_serving.tree import pack_mask, packed_bytes

PAGE = 16
WORKSPACE = 256 << 20
_workspace: dict[torch.device, Tensor] = {}


def paged(x_BSKD: Tensor) -> Tensor:
    """[B, S, K, D] -> pages [B * P, PAGE, K, D], the last page of a request filled up with what is never read."""
    batch, length = x_BSKD.shape[:2]
    pages = math.ceil(length / PAGE)
    padded = x_BSKD.new_zeros(batch, pages * PAGE, *x_BSKD.shape[2:])
    padded[:, :length] = x_BSKD
    return padded.reshape(batch * pages, PAGE, *x_BSKD.shape[2:])


def _planned(case: Case, length: int, mask: bool) -> Any:
    device, (batch, rows, heads, size) = case.q_BRAD.device, case.q_BRAD.shape
    pages = math.ceil(length / PAGE)
    if device not in _workspace:
        _workspace[device] = torch.empty(WORKSPACE, dtype=torch.uint8, device=device)
    # the backend that takes a mask; for both ways, so that one kernel is compiled
    wrapper = BatchPrefillWithPagedKVCacheWrapper(_workspace[device], "NHD", backend="fa2")
    index = torch.arange(batch + 1, dtype=torch.int32)
    more: dict[str, Any] = {}
    if mask:
        committed_B = torch.full((batch,), case.prefix, device=device)
        rows_B = torch.full((batch,), rows, device=device)
        packed = pack_mask(case.layout, committed_B, rows_B, batch * packed_bytes(case.prefix, rows))
        more["packed_custom_mask"] = packed.bytes_T
    wrapper.plan(
        index * rows,
        index * pages,
        torch.arange(batch * pages, dtype=torch.int32),
        torch.full((batch,), length - (pages - 1) * PAGE, dtype=torch.int32),
        num_qo_heads=heads,
        num_kv_heads=case.k_BSKD.shape[2],
        head_dim_qk=size,
        page_size=PAGE,
        q_data_type=case.q_BRAD.dtype,
        kv_data_type=case.k_BSKD.dtype,
        **more,
    )
    if mask:
        # plan() counts these in bits and uses them as bytes: see tree.mask.PackedMask
        wrapper._mask_indptr_buf = packed.indptr_B1.to(torch.int32)
    return wrapper


def flashinfer_mask(case: Case) -> Callable[[], Tensor]:
    wrapper = _planned(case, case.k_BSKD.shape[1], mask=True)
    kv = (paged(case.k_BSKD), paged(case.v_BSKD))

    def run() -> Tensor:
        out_TAD: Tensor = wrapper.run(case.q_BRAD.flatten(0, 1), kv)
        out_BRAD: Tensor = out_TAD.unflatten(0, case.q_BRAD.shape[:2])
        return out_BRAD

    return run


def flashinfer_split(case: Case) -> Callable[[], Tensor]:
    wrapper = _planned(case, case.prefix, mask=False)
    kv = (paged(case.k_BSKD[:, : case.prefix]), paged(case.v_BSKD[:, : case.prefix]))
    k_BRKD, v_BRKD = (x[:, case.prefix :].contiguous() for x in (case.k_BSKD, case.v_BSKD))

    def prefix(q_BRAD: Tensor) -> AttentionState:
        out_TAD, lse_TA = wrapper.run(q_BRAD.flatten(0, 1), kv, return_lse=True)
        # its sum is in base 2
        return AttentionState(
            out_TAD.unflatten(0, q_BRAD.shape[:2]), lse_TA.unflatten(0, q_BRAD.shape[:2]) * math.log(2)
        )

    return lambda: tree_attention(case.q_BRAD, k_BRKD, v_BRKD, case.layout.ancestors_BNN, prefix).out_BRAD


WAYS = {"flashinfer-mask": flashinfer_mask, "flashinfer-split": flashinfer_split}
