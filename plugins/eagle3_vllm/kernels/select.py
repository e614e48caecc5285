"""The tree of every request out of its pool, to where the next pass looks for it, in one launch.

Shape letters: S request slots, K node parents of a slot, B requests of the padded batch, P candidates of the pool, N nodes
of a tree, V draft vocabulary.
"""

import torch
from torch import Tensor
from vllm.triton_utils import tl, triton

from eagle3_serving.tree import Candidates
from eagle3_vllm.kernels.order import ordered


def select(
    candidates: Candidates,
    depth: int,
    slots_B: Tensor,
    drafting_B: Tensor,
    draft_tokens_BN: Tensor,
    parents_SK: Tensor,
    sums: Tensor,
    target_ids_V: Tensor | None = None,
    only_chain_S: Tensor | None = None,
    budget_B: Tensor | None = None,
) -> None:
    """The core's `select` of N nodes: tokens into `draft_tokens_BN` int64 (target ids, 0 where there is no node), parents into
    `parents_SK` int64 of the request's slot (PADDING where there is none, and past N).

    `candidates` as `expand` left them, none deeper than `depth`. `slots_B` int, negative for padding, which has no slot to
    write to and no tokens. A request whose `drafting_B` bool is false has no node. Of requests whose slot's `only_chain_S`
    bool is set, only the core's `likeliest_path` is looked at. `budget_B` int: most nodes of each, N at most. `target_ids_V`
    int64: the target's ids of the draft's (None: they are the same). To `sums` int64 are added, at 3, the drafts and, at
    4, their nodes. Of equal scores the earlier candidate goes first, as in the core. Raises ValueError where a slot has
    no room for N nodes.
    """
    batch, nodes = draft_tokens_BN.shape
    size, room = candidates.scores_BC.shape[1], parents_SK.shape[1]
    if room < nodes or parents_SK.stride(1) != 1 or draft_tokens_BN.stride(1) != 1:
        raise ValueError(f"{nodes} nodes a request, and parents of {tuple(parents_SK.shape)} to hold them")
    _select_kernel[(batch,)](
        *candidates,
        slots_B,
        drafting_B.view(torch.int8),
        slots_B if only_chain_S is None else only_chain_S.view(torch.int8),
        slots_B if budget_B is None else budget_B,
        slots_B if target_ids_V is None else target_ids_V,
        draft_tokens_BN,
        draft_tokens_BN.stride(0),
        parents_SK,
        parents_SK.stride(0),
        sums,
        size,
        nodes,
        room,
        depth,
        CHAINS=only_chain_S is not None,
        BUDGETED=budget_B is not None,
        MAPPED=target_ids_V is not None,
        POOL=max(16, triton.next_power_of_2(size)),
        ROOM=triton.next_power_of_2(room),
    )


@triton.jit(do_not_specialize=["tokens_stride", "parents_stride", "size", "nodes", "room", "depth"])
def _select_kernel(  # type: ignore[no-untyped-def]
    tokens_ptr,
    parents_ptr,
    scores_ptr,
    slots_ptr,
    drafting_ptr,
    only_chain_ptr,
    budget_ptr,
    target_ids_ptr,
    tokens_out,
    tokens_stride,
    parents_out,
    parents_stride,
    sums_ptr,
    size,
    nodes,
    room,
    depth,
    CHAINS: tl.constexpr,
    BUDGETED: tl.constexpr,
    MAPPED: tl.constexpr,
    POOL: tl.constexpr,
    ROOM: tl.constexpr,
):
    b = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots_ptr + b).to(tl.int64)
    drafting = (slot >= 0) & (tl.load(drafting_ptr + b) != 0)
    most = tl.where(drafting, nodes, 0)
    if BUDGETED:
        most = tl.maximum(tl.minimum(most, tl.load(budget_ptr + b).to(tl.int32)), 0)
    p = tl.arange(0, POOL)
    inside = p < size
    score = tl.load(scores_ptr + b * size + p, mask=inside, other=-float("inf"))
    parent = tl.load(parents_ptr + b * size + p, mask=inside, other=-3).to(tl.int32)
    if CHAINS:  # noqa: SIM102  (decided when it is compiled, the other when it runs)
        if tl.load(only_chain_ptr + tl.maximum(slot, 0)) != 0:
            # the best child of the root, then the best child of that, as long as there is one
            node = tl.max(p * 0 - 1, axis=0)
            path = p * 0
            for _ in range(depth):
                own = tl.where(parent == node, score, -float("inf"))
                best = tl.max(own, axis=0)
                node = tl.min(tl.where((own == best) & (own > -float("inf")), p, POOL), axis=0)
                path = path | (p == node).to(tl.int32)
            score = tl.where(path != 0, score, -float("inf"))
    live = score > -float("inf")
    key = tl.where(live, ordered(score), -0x80000000).to(tl.int64)
    # the score of the last node, bit by bit from above: as many stand at or above it as are wanted
    bound = tl.min(p.to(tl.int64) * 0 - 0x80000000, axis=0)
    for i in range(32):
        higher = bound + (tl.full((), 1, tl.int64) << (31 - i))
        enough = tl.sum((key >= higher).to(tl.int32), axis=0) >= most
        bound = tl.where(enough, higher, bound)
    over = key > bound
    equal = live & (key == bound)
    left = most - tl.sum(over.to(tl.int32), axis=0)
    taken = over | (equal & (tl.cumsum(equal.to(tl.int32), axis=0) <= left))
    # parents stand before children in the pool, and so they do in the tree
    index = tl.cumsum(taken.to(tl.int32), axis=0) - 1
    total = tl.sum(taken.to(tl.int32), axis=0)
    above = tl.gather(index, tl.maximum(parent, 0), 0)
    above = tl.where(parent < 0, -1, above)
    token = tl.load(tokens_ptr + b * size + p, mask=taken, other=0).to(tl.int64)
    if MAPPED:
        token = tl.load(target_ids_ptr + token, mask=taken, other=0)
    tl.store(tokens_out + b * tokens_stride + index, token, mask=taken)
    slot_ptr = parents_out + tl.maximum(slot, 0) * parents_stride
    tl.store(slot_ptr + index, above, mask=taken)
    n = tl.arange(0, ROOM)
    tl.store(tokens_out + b * tokens_stride + n, n * 0, mask=(n >= total) & (n < nodes))
    tl.store(slot_ptr + n, n * 0 - 2, mask=(n >= total) & (n < tl.where(slot >= 0, room, 0)))
    tl.atomic_add(sums_ptr + 3, 1, mask=drafting)
    tl.atomic_add(sums_ptr + 4, total.to(tl.int64), mask=drafting)
