"""Packed rows inside a transformers model: an attention of our own behind its attention interface."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from eagle3_serving.engine.reach import Reach
from eagle3_serving.engine.rows import KVPool, RowPlan
from eagle3_serving.engine.scores import Scores
from eagle3_serving.errors import InputError

NAME = "eagle3_rows"
NO_MASK = (1, 1, 1, 1)  # the shape of the mask of a pass over packed rows, which masks nothing


def use_row_attention(model: Any) -> None:
    """From now on `model(..., rows=(pool, plan, reaches))` attends over the pool, each layer as far as its reach; without
    `rows` it is transformers' own SDPA, or ours where that would leave something out."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

    AttentionInterface.register(NAME, _attend)
    AttentionMaskInterface.register(NAME, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
    model.config._attn_implementation = NAME


def _attend(
    module: Any,
    q_BALD: Tensor,
    k_BKLD: Tensor,
    v_BKLD: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    rows: tuple[KVPool, RowPlan, Sequence[Reach | None]] | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    if rows is not None:
        pool, plan, reaches = rows
        reach = reaches[module.layer_idx] or (Reach("window", sliding_window) if sliding_window else None)
        scores = Scores(reach, softcap, s_aux)
        q_TAD, k_TKD, v_TKD = (x[0].transpose(0, 1) for x in (q_BALD, k_BKLD, v_BKLD))
        return pool.attend(module.layer_idx, q_TAD, k_TKD, v_TKD, plan, scaling, scores)[None], None
    if attention_mask is not None and attention_mask.shape == NO_MASK:
        # its layers dropped what tells the rows apart: they would all attend to each other, in silence
        raise InputError(
            f"{type(module).__name__} does not hand packed rows on to its attention: the embedded engine cannot run it"
        )
    scores = Scores(None, softcap, s_aux)
    if scores.plain:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        out: tuple[Tensor, None] = sdpa_attention_forward(
            module, q_BALD, k_BKLD, v_BKLD, attention_mask, scaling=scaling, **kwargs
        )
        return out
    length = q_BALD.shape[2]
    if attention_mask is None:  # where nothing but causality is masked, none is made
        seen_BRS = torch.ones(1, length, length, dtype=torch.bool, device=q_BALD.device).tril()
    else:
        seen_BRS = attention_mask[:, 0]
    q_BLAD, k_BLKD, v_BLKD = (x.transpose(1, 2) for x in (q_BALD, k_BKLD, v_BKLD))
    return scores.attend(q_BLAD, k_BLKD, v_BLKD, seen_BRS, scaling), None
