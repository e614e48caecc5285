"""Draft trees as SGLang's kernels keep them: first child and next sibling of each row, row 0 being the root.

Shape letters: B requests, R = draft tokens (root included), D = deepest path (root included).
"""

import torch
from torch import Tensor

QLEN_ONLY = 1


def build_tree_kernel_efficient_cpu(
    parent_list: Tensor,
    selected_index: Tensor,
    verified_seq_len: Tensor,
    tree_mask: Tensor,
    positions: Tensor,
    retrive_index: Tensor,
    retrive_next_token: Tensor,
    retrive_next_sibling: Tensor,
    topk: int,
    depth: int,
    draft_token_num: int,
    tree_mask_mode: int,
) -> None:
    """Fills mask, positions and links of the rows `selected_index` [B, R - 1] chosen from the candidates.

    Candidate c hangs under group c // topk; group 0 is the root, group g > 0 is candidate `parent_list[b, g]`. The
    mask is [B, R, R] (QLEN_ONLY), or [R, seq_len + R] a request, one after the other.
    """
    batch, rows = verified_seq_len.shape[0], draft_token_num
    seen_BRR = torch.zeros(batch, rows, rows, dtype=torch.bool)
    first_child = [[-1] * rows for _ in range(batch)]
    next_sibling = [[-1] * rows for _ in range(batch)]
    for b, (chosen, parents) in enumerate(zip(selected_index.tolist(), parent_list.tolist(), strict=True)):
        row_of = {candidate: row for row, candidate in reversed(list(enumerate(chosen, 1)))}
        parent = [0] + [0 if c < topk else row_of[parents[c // topk]] for c in chosen]
        for row in range(rows - 1, 0, -1):
            # the earliest child comes first
            next_sibling[b][row] = first_child[b][parent[row]]
            first_child[b][parent[row]] = row
        seen_BRR[b, :, 0] = True
        for row in range(1, rows):
            at = row
            while at:
                seen_BRR[b, row, at] = True
                at = parent[at]
    if int(tree_mask_mode) == QLEN_ONLY:
        tree_mask.view(batch, rows, rows).copy_(seen_BRR)
    else:
        start = 0
        for length, seen_RR in zip(verified_seq_len.tolist(), seen_BRR, strict=True):
            end = start + rows * (length + rows)
            tree_mask[start:end].view(rows, length + rows)[:, length:] = seen_RR
            start = end
    depth_BR = seen_BRR.sum(2) - 1
    positions.view(batch, rows).copy_(verified_seq_len[:, None] + depth_BR)
    retrive_index.copy_(torch.arange(batch * rows).view(batch, rows))
    retrive_next_token.copy_(torch.tensor(first_child))
    retrive_next_sibling.copy_(torch.tensor(next_sibling))


def verify_tree_greedy_cpu(
    predicts: Tensor,
    accept_index: Tensor,
    accept_token_num: Tensor,
    candidates: Tensor,
    retrive_index: Tensor,
    retrive_next_token: Tensor,
    retrive_next_sibling: Tensor,
    target_predict: Tensor,
) -> None:
    """Walks each tree from the root along the rows whose token is the target's choice at their parent.

    `accept_index` [B, D] gets the rows reached (root first), `accept_token_num` [B] how many after the root,
    `predicts` [B * R] the target's choice at each of them.
    """
    longest = accept_index.shape[1]
    wanted = target_predict.flatten().tolist()
    links = zip(
        *(x.tolist() for x in (candidates, retrive_index, retrive_next_token, retrive_next_sibling)), strict=True
    )
    for b, (tokens, index, first_child, next_sibling) in enumerate(links):
        path = [0]
        while len(path) < longest:
            child = first_child[path[-1]]
            while child != -1 and tokens[child] != wanted[index[path[-1]]]:
                child = next_sibling[child]
            if child == -1:
                break
            path.append(child)
        reached = [index[row] for row in path]
        accept_index[b, : len(reached)] = torch.tensor(reached, dtype=accept_index.dtype)
        accept_token_num[b] = len(reached) - 1
        predicts[reached] = torch.tensor([wanted[row] for row in reached], dtype=predicts.dtype)


def fill_bonus_tokens_cpu(accept_tokens: Tensor, accept_lens: Tensor, bonus_tokens: Tensor, accept_stride: int) -> None:
    """The last accepted token of each request; `accept_lens` counts it."""
    last_B = torch.arange(len(accept_lens)) * accept_stride + accept_lens.long() - 1
    bonus_tokens.copy_(accept_tokens.flatten()[last_B])
