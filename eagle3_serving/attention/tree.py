"""Attention of the rows of a draft tree, split: one pass over the committed prefix without any mask, one small dense block
over the tree's own rows, merged. Any kernel that returns its log-sum-exp serves as the prefix pass.

Shape letters: B requests, R rows of the tree (root first), S prefix keys, A query heads, K key-value heads, D head size.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from eagle3_serving.attention.state import AttentionState, attend, merge

# the rows' attention over the prefix alone
Prefix = Callable[[Tensor], AttentionState]


def tree_block(
    q_BRAD: Tensor, k_BRKD: Tensor, v_BRKD: Tensor, ancestors_BRR: Tensor, scale: float | None = None
) -> AttentionState:
    """The rows over themselves under the ancestor mask (`tree.TreeLayout.ancestors_BNN` in row space)."""
    return attend(q_BRAD, k_BRKD, v_BRKD, ancestors_BRR, scale)


def tree_attention(
    q_BRAD: Tensor,
    k_BRKD: Tensor,
    v_BRKD: Tensor,
    ancestors_BRR: Tensor,
    prefix: Prefix,
    scale: float | None = None,
) -> AttentionState:
    """A verify pass's attention: `prefix` over what is committed, the ancestor mask over the tree, merged."""
    return merge(prefix(q_BRAD), tree_block(q_BRAD, k_BRKD, v_BRKD, ancestors_BRR, scale))


def prefix_attention(
    q_BRAD: Tensor, k_BKSD: Tensor, v_BKSD: Tensor, scale: float | None = None, committed_B: Tensor | None = None
) -> AttentionState:
    """All rows over all S prefix keys (the layout of `engine.rows.KVPool`), by PyTorch's flash kernel where it has one.

    The kernel takes no mask: with `committed_B` [B] int64, where the prefixes differ in length, the plain arithmetic is
    used.
    """
    if committed_B is not None:
        seen_BS = torch.arange(k_BKSD.shape[2], device=committed_B.device) < committed_B[:, None]
        seen_BRS = seen_BS[:, None].expand(-1, q_BRAD.shape[1], -1)
        return attend(q_BRAD, k_BKSD.transpose(1, 2), v_BKSD.transpose(1, 2), seen_BRS, scale)
    if k_BKSD.shape[2] == 0 or (q_BRAD.is_cuda and q_BRAD.dtype == torch.float32):
        return attend(q_BRAD, k_BKSD.transpose(1, 2), v_BKSD.transpose(1, 2), None, scale)
    heads, groups, rows = k_BKSD.shape[1], q_BRAD.shape[2] // k_BKSD.shape[1], q_BRAD.shape[1]
    q_BKLD = q_BRAD.unflatten(2, (heads, groups)).permute(0, 2, 3, 1, 4).flatten(2, 3)
    # the two operators behind scaled_dot_product_attention: only they give the sum of exponentials back
    flash = torch.ops.aten._scaled_dot_product_flash_attention
    if not q_BRAD.is_cuda:
        flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    out_BKLD, lse_BKL = flash(q_BKLD, k_BKSD, v_BKSD, scale=scale)[:2]
    out_BRAD = out_BKLD.unflatten(2, (groups, rows)).permute(0, 3, 1, 2, 4).flatten(2, 3)
    # some versions pad the rows of the sum
    lse_BRA = lse_BKL[..., : groups * rows].unflatten(2, (groups, rows)).permute(0, 3, 1, 2).flatten(2, 3)
    return AttentionState(out_BRAD, lse_BRA.float())
