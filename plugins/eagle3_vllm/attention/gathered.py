"""Attention of tree rows that stand among others: gathered, attended over prefix and mask, and put where they came from."""

from typing import Any

from torch import Tensor


def attend_gathered(
    prefix: Any,
    rows: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    output: Tensor,
    heads: int,
    head_dim: int,
    windowed: bool = False,
) -> None:
    """`prefix` a `paged.Prefix`, `rows` the pass's `trees.PassRows`; the others as vLLM hands them to a layer. `windowed`: the
    prefix has a window, which slides with a row's depth."""
    index_BR, mask_BRR = rows.repeated()
    q_BRAD, k_BRKD, v_BRKD = (x.view(len(x), -1, head_dim)[index_BR] for x in (query, key, value))
    past = mask_BRR.sum(-1) - 1 if windowed else 0  # a row sees its ancestors and itself
    output.view(-1, heads, head_dim)[index_BR] = prefix.attend(q_BRAD, k_BRKD, v_BRKD, mask_BRR, past)
