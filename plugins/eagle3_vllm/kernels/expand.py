"""One depth of a draft from its logits, in two launches: the pool's new candidates, and all that the next step takes in.

Shape letters: B requests of the padded batch, W nodes drafted from, C children of each, P candidates of the pool, S draft
rows so far, V draft vocabulary, X = B * W.
"""

import torch
from torch import Tensor
from vllm.triton_utils import tl, triton

from eagle3_serving.tree.sampling import COUPLING, GREEDY_BELOW
from eagle3_vllm.kernels.calibrate import CalibrationTables, calibrated
from eagle3_vllm.kernels.noise import SharedNoise, gumbel
from eagle3_vllm.kernels.order import joined, parted
from eagle3_vllm.kernels.pool import DraftBuffers, chunk_of, chunks_of

LOWEST = tl.constexpr(-0x7FFFFFFFFFFFFFFF)  # below every key that `joined` gives
PLACES = tl.constexpr(2047)  # candidates of a depth, at most one more
TOKEN_BITS = tl.constexpr(20)
TOKEN_MASK = tl.constexpr((1 << 20) - 1)
_GREEDY_BELOW = tl.constexpr(GREEDY_BELOW)
_COUPLING = tl.constexpr(COUPLING)


def expand(
    draft: DraftBuffers,
    depth: int,
    logits_XV: Tensor,
    prefix_B: Tensor,
    target_ids_V: Tensor | None = None,
    calibration: CalibrationTables | None = None,
    noise: SharedNoise | None = None,
    slots_B: Tensor | None = None,
) -> None:
    """`top_children` of the frontier after `depth` - 1, calibrated, into the pool; and `draft.steps[depth]`, if one follows.
    With `noise` and `slots_B` (int, -1: no request) they are `coupled_children`: what the draw after their parents may be.

    `logits_XV` [B * W, V] fp32, fp16 or bf16 of `draft.steps[depth - 1]`, request by request, rows of any stride.
    `prefix_B` int: the step's rows stand at position `prefix_B` + `depth` - 1. `target_ids_V` int64: the target's ids of
    the draft's (None: they are the same). Raises ValueError where the logits are not of this depth.

    Results are those of the core's `expand(top_children(...))`, with one law where it has none: of equal logits the lower
    id comes first, and of equal scores the earlier candidate. torch.topk, which the core asks, takes any of equals, and
    it compares log-probabilities, whose rounding may make or part equals. A row with a logit that is not a number, or
    +inf, or with none above -inf, has children without a chance (-inf).
    """
    shape = draft.shape
    batch, width = draft.tokens_BP.shape[0], shape.widths[depth - 1]
    if logits_XV.shape != (batch * width, shape.vocab) or logits_XV.stride(1) != 1:
        raise ValueError(f"logits of {tuple(logits_XV.shape)} at depth {depth}: {(batch * width, shape.vocab)} wanted")
    children, chunks = shape.children, chunks_of(shape.vocab)
    size = min(chunk_of(shape.vocab), max(16, triton.next_power_of_2(shape.vocab)))
    told = (prefix_B,) * 3 if noise is None or slots_B is None else (slots_B, noise.temperature_S, noise.seeds_S)
    _chunk_kernel[(batch * width, chunks)](
        logits_XV,
        logits_XV.stride(0),
        shape.vocab,
        draft.best,
        draft.largest,
        draft.total,
        width,
        depth - 1,
        *told,
        prefix_B,
        prefix_B if target_ids_V is None else target_ids_V,
        COUPLED=noise is not None and slots_B is not None,
        MAPPED=target_ids_V is not None,
        WIDE=noise is not None and noise.wide,
        CHUNKS=chunks,
        TOP=children,
        BLOCK=size,
        num_warps=4 if size <= 2048 else 8,
    )
    before = draft.steps[depth - 1]
    last = depth == shape.depth
    after = before if last else draft.steps[depth]
    nodes, keys = triton.next_power_of_2(width), triton.next_power_of_2(chunks * children)
    tables = (
        (before.scores_BW,) * 3
        if calibration is None
        else (calibration.bias_D, calibration.slope_D, calibration.rank_R)
    )
    _grow_kernel[(batch,)](
        draft.best,
        draft.largest,
        draft.total,
        before.scores_BW,
        before.nodes_BW,
        before.mask_BWS.view(torch.int8),
        *tables,
        tables[0].shape[0],
        tables[2].shape[0],
        prefix_B,
        prefix_B if target_ids_V is None else target_ids_V,
        draft.tokens_BP,
        draft.parents_BP,
        draft.scores_BP,
        shape.candidates,
        sum(shape.widths[: depth - 1]) * children,
        depth,
        width,
        before.mask_BWS.shape[2],
        after.tokens_BW,
        after.source_BW,
        after.positions_BW,
        after.mask_BWS.view(torch.int8),
        after.scores_BW,
        after.nodes_BW,
        NEXT=0 if last else shape.widths[depth],
        CHUNKS=chunks,
        CHILDREN=children,
        MAPPED=target_ids_V is not None,
        CALIBRATED=calibration is not None,
        NODES=nodes,
        PARTS=triton.next_power_of_2(chunks),
        KEYS=keys,
        CHILD_BLOCK=triton.next_power_of_2(children),
        NEXT_BLOCK=1 if last else triton.next_power_of_2(shape.widths[depth]),
        ROWS=triton.next_power_of_2(max(shape.rows, 1)),
        num_warps=4 if nodes * keys <= 1024 else 8 if nodes * keys <= 4096 else 16,
    )


@triton.jit(do_not_specialize=["vocab", "width", "ahead"])
def _chunk_kernel(  # type: ignore[no-untyped-def]
    logits_ptr,
    stride,
    vocab,
    best_out,
    largest_out,
    total_out,
    width,
    ahead,
    slots_ptr,
    temperature_ptr,
    seeds_ptr,
    prefix_ptr,
    target_ids_ptr,
    COUPLED: tl.constexpr,
    MAPPED: tl.constexpr,
    WIDE: tl.constexpr,
    CHUNKS: tl.constexpr,
    TOP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A part of one row of logits: its best, as keys, and what the softmax needs of it."""
    row = tl.program_id(0).to(tl.int64)
    chunk = tl.program_id(1)
    token = chunk * BLOCK + tl.arange(0, BLOCK)
    inside = token < vocab
    logit = tl.load(logits_ptr + row * stride + token, mask=inside, other=-float("inf")).to(tl.float32)
    if COUPLED:
        b = row // width
        slot = tl.load(slots_ptr + b).to(tl.int64)
        temperature = tl.load(temperature_ptr + slot, mask=slot >= 0, other=0.0)
        if temperature >= _GREEDY_BELOW:
            seed = tl.load(seeds_ptr + slot)
            position = tl.load(prefix_ptr + b).to(tl.int64) + ahead
            target_id = tl.load(target_ids_ptr + token, mask=inside, other=0) if MAPPED else token
            # noise is finite: what was not a number, or impossible, stays so
            logit = logit + temperature * _COUPLING * gumbel(seed, position, target_id, WIDE)
    clean = tl.where(logit == logit, logit, -float("inf"))
    largest = tl.max(clean, axis=0)
    # what is not a number stays in the sum, and makes its whole row so, as in the core
    total = tl.sum(tl.exp(logit - tl.where(largest == -float("inf"), 0.0, largest)), axis=0)
    place = row * CHUNKS + chunk
    tl.store(largest_out + place, largest)
    tl.store(total_out + place, total)
    # the lower id has the higher key
    key = tl.where(inside, joined(clean, 0x7FFFFFFF - token), LOWEST)
    for i in range(TOP):
        best = tl.max(key, axis=0)
        tl.store(best_out + place * TOP + i, best)
        key = tl.where(key == best, LOWEST, key)


@triton.jit(do_not_specialize=["size", "start", "depth", "width", "seen", "depths", "ranks"])
def _grow_kernel(  # type: ignore[no-untyped-def]
    best_ptr,
    largest_ptr,
    total_ptr,
    scores_ptr,
    nodes_ptr,
    mask_ptr,
    bias_ptr,
    slope_ptr,
    rank_ptr,
    depths,
    ranks,
    prefix_ptr,
    target_ids_ptr,
    pool_tokens_out,
    pool_parents_out,
    pool_scores_out,
    size,
    start,
    depth,
    width,
    seen,
    tokens_out,
    source_out,
    positions_out,
    mask_out,
    scores_out,
    nodes_out,
    NEXT: tl.constexpr,
    CHUNKS: tl.constexpr,
    CHILDREN: tl.constexpr,
    MAPPED: tl.constexpr,
    CALIBRATED: tl.constexpr,
    NODES: tl.constexpr,
    PARTS: tl.constexpr,
    KEYS: tl.constexpr,
    CHILD_BLOCK: tl.constexpr,
    NEXT_BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
):
    """A request's frontier: its children, their scores, and the best of them."""
    b = tl.program_id(0).to(tl.int64)
    node = tl.arange(0, NODES)
    there = node < width
    row = b * width + node
    # the softmax's denominator, from its parts
    part = tl.arange(0, PARTS)
    parts = there[:, None] & (part < CHUNKS)[None, :]
    largest_NP = tl.load(largest_ptr + row[:, None] * CHUNKS + part[None, :], mask=parts, other=-float("inf"))
    total_NP = tl.load(total_ptr + row[:, None] * CHUNKS + part[None, :], mask=parts, other=0.0)
    largest = tl.max(largest_NP, axis=1)
    largest = tl.where(largest == -float("inf"), 0.0, largest)
    rest = tl.log(tl.sum(total_NP * tl.exp(largest_NP - largest[:, None]), axis=1))
    # the best of the parts' best
    at = tl.arange(0, KEYS)
    keys = there[:, None] & (at < CHUNKS * CHILDREN)[None, :]
    key_NK = tl.load(best_ptr + row[:, None] * (CHUNKS * CHILDREN) + at[None, :], mask=keys, other=LOWEST)
    above = tl.load(scores_ptr + row, mask=there, other=0.0)
    child = tl.arange(0, CHILD_BLOCK)
    token_NC = node[:, None] * 0 + child[None, :] * 0
    score_NC = token_NC.to(tl.float32)
    for i in range(CHILDREN):
        best = tl.max(key_NK, axis=1)
        key_NK = tl.where(key_NK == best[:, None], LOWEST, key_NK)
        logit, low = parted(best)
        log_p = (logit - largest) - rest
        log_p = tl.where(log_p == log_p, tl.minimum(log_p, 0.0), -float("inf"))
        if CALIBRATED:
            log_p = calibrated(log_p, i, depth, bias_ptr, slope_ptr, rank_ptr, depths, ranks)
        here = child[None, :] == i
        token_NC = tl.where(here, (0x7FFFFFFF - low)[:, None], token_NC)
        score_NC = tl.where(here, (above + log_p)[:, None], score_NC)
    place_NC = node[:, None] * CHILDREN + child[None, :]
    inside = there[:, None] & (child < CHILDREN)[None, :]
    first = b * size + start
    parent = tl.load(nodes_ptr + row, mask=there, other=0)
    tl.store(pool_tokens_out + first + place_NC, token_NC, mask=inside)
    tl.store(pool_parents_out + first + place_NC, parent[:, None] + place_NC * 0, mask=inside)
    tl.store(pool_scores_out + first + place_NC, score_NC, mask=inside)
    if NEXT > 0:
        # the token rides along below the place, which alone decides between equals
        low_NC = ((PLACES - place_NC) << TOKEN_BITS) | token_NC
        candidate_NC = tl.where(inside, joined(score_NC, low_NC), LOWEST)
        rank = tl.arange(0, NEXT_BLOCK)
        chosen = (rank * 0).to(tl.int64)
        for i in range(NEXT):
            # one axis after the other: of both flattened Triton 3.6 passes half by, where lanes stand twice (seen on an H100)
            best = tl.max(tl.max(candidate_NC, axis=1), axis=0)
            candidate_NC = tl.where(candidate_NC == best, LOWEST, candidate_NC)
            chosen = tl.where(rank == i, best, chosen)
        score, low = parted(chosen)
        place = PLACES - (low >> TOKEN_BITS)
        token = (low & TOKEN_MASK).to(tl.int64)
        slot = place // CHILDREN
        inside = rank < NEXT
        if MAPPED:
            token = tl.load(target_ids_ptr + token, mask=inside, other=0)
        to = b * NEXT + rank
        tl.store(tokens_out + to, token, mask=inside)
        tl.store(source_out + to, b * width + slot, mask=inside)
        position = tl.load(prefix_ptr + b).to(tl.int64) + depth - 1
        tl.store(positions_out + to, rank * 0 + position, mask=inside)
        tl.store(scores_out + to, score, mask=inside)
        tl.store(nodes_out + to, start + place, mask=inside)
        # what the parent's row sees, and itself
        old = tl.arange(0, ROWS)
        before = inside[:, None] & (old < seen)[None, :]
        view = tl.load(mask_ptr + (b * width + slot)[:, None] * seen + old[None, :], mask=before, other=0)
        view = view | (old[None, :] == seen + rank[:, None]).to(tl.int8)
        now = seen + NEXT
        tl.store(mask_out + to[:, None] * now + old[None, :], view, mask=inside[:, None] & (old < now)[None, :])
