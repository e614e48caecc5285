"""Attention of tree rows over paged keys and over one another as one kernel, its keys split over programs, and one that combines.

A program takes one key-value head of one request, a tile of its query rows (all query heads of that key head are rows of
the tile, so keys are read once for them) and a share of its keys: the pages of the prefix, which every row sees, then the
tail, the draft's own rows, under their mask. Shares are equal whatever a request's length: what is split follows lengths
that stand on the device. With one share the first kernel writes the result, otherwise a second weighs the parts by their
sums of exponentials (flash decoding). Sums are in fp32; the exponents' base is 2.

Nothing is read on the host, nothing is allocated, and the grid hangs on shapes alone: both may stand in a CUDA graph. It
computes what `eagle3_serving.attention.tree_attention` does, to which tests hold it under Triton's interpreter; they
compile it for sm_90 too and count what spills. Its tests passed on an H100; its time is not measured.

Shape letters: B requests, R query rows of a request, T rows of all, S rows of the tail, A query heads, K key-value heads,
G = A / K, D head size, P pages of the cache, U places of a page, N pages of a request.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from vllm.triton_utils import tl, triton

MOST_SPLITS = 32


@triton.jit
def _share(prefix, tail, window, N: tl.constexpr, SPLITS: tl.constexpr):  # type: ignore[no-untyped-def]
    """The first block of N keys that a row can see, the first block of the tail, the end, and blocks of a program."""
    first = tl.maximum(prefix - window + 1, 0) // N
    tail_first = tl.cdiv(prefix, N)
    end = tail_first + tl.cdiv(tail, N)
    return first, tail_first, end, tl.cdiv(end - first, SPLITS)


@triton.jit
def _absorb(q, k, v, seen, scale, best, total, out):  # type: ignore[no-untyped-def]
    """The softmax so far, and a block of keys more."""
    scores = tl.dot(q, tl.trans(k), input_precision="tf32x3") * scale
    scores = tl.where(seen, scores, -float("inf"))
    higher = tl.maximum(best, tl.max(scores, axis=1))
    base = tl.where(higher == -float("inf"), 0.0, higher)
    weights = tl.exp2(scores - base[:, None])
    shrink = tl.exp2(best - base)
    total = total * shrink + tl.sum(weights, axis=1)
    out = tl.dot(weights.to(v.dtype), v, out * shrink[:, None], input_precision="tf32x3")
    return higher, total, out


@triton.jit(do_not_specialize=["rows", "tail", "total_rows", "window"])
def _split_kernel(  # type: ignore[no-untyped-def]
    q_ptr,
    k_ptr,
    v_ptr,
    mask_ptr,
    keys_ptr,
    values_ptr,
    table_ptr,
    prefix_ptr,
    starts_ptr,
    depth_ptr,
    out_ptr,
    part_ptr,
    lse_ptr,
    scale,
    rows,
    tail,
    total_rows,
    window,
    q_request,
    q_row,
    q_head,
    k_request,
    k_row,
    k_head,
    v_request,
    v_row,
    v_head,
    mask_request,
    mask_row,
    keys_page,
    keys_place,
    keys_head,
    values_page,
    values_place,
    values_head,
    table_request,
    depth_request,
    out_request,
    out_row,
    out_head,
    SPLITS: tl.constexpr,
    PAGE: tl.constexpr,
    HEADS: tl.constexpr,
    GROUPS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    DIM: tl.constexpr,
    VARLEN: tl.constexpr,
    WINDOWED: tl.constexpr,
    WIDE: tl.constexpr,
):
    tile = tl.program_id(0)
    split = tl.program_id(1) % SPLITS
    kv_head = tl.program_id(1) // SPLITS
    request = tl.program_id(2).to(tl.int64)
    first_row = request * rows
    if VARLEN:
        first_row = tl.load(starts_ptr + request).to(tl.int64)
        rows = (tl.load(starts_ptr + request + 1) - first_row).to(tl.int32)
        tail = rows
    if tile * M >= rows * GROUPS:
        return
    prefix = tl.load(prefix_ptr + request)
    first, tail_first, end, blocks = _share(prefix, tail, window, N, SPLITS)
    begin = first + split * blocks
    if begin >= end:
        return
    end = tl.minimum(begin + blocks, end)

    place = tile * M + tl.arange(0, M)
    row = place // GROUPS
    head = kv_head * GROUPS + place % GROUPS
    there = place < rows * GROUPS
    dim = tl.arange(0, DIM)
    key = tl.arange(0, N)
    whole = dim < HEAD_DIM
    row_dim = there[:, None] & whole[None, :]
    if VARLEN:
        q_ptr += first_row * q_row
        k_ptr += first_row * k_row
        v_ptr += first_row * v_row
        out_ptr += first_row * out_row
    else:
        q_ptr += request * q_request
        k_ptr += request * k_request
        v_ptr += request * v_request
        out_ptr += request * out_request
    q = tl.load(q_ptr + (row * q_row + head * q_head)[:, None] + dim[None, :], mask=row_dim, other=0.0)
    if WIDE:  # the interpreter would multiply the bits of bf16 as integers
        q = q.to(tl.float32)
    best = tl.full([M], -float("inf"), tl.float32)
    total = tl.zeros([M], tl.float32)
    out = tl.zeros([M, DIM], tl.float32)
    if WINDOWED:
        lowest = prefix + tl.load(depth_ptr + request * depth_request + row, mask=there, other=0) - window

    keys_ptr += kv_head * keys_head
    values_ptr += kv_head * values_head
    table_ptr += request * table_request
    for block in range(begin, tl.minimum(end, tail_first)):
        position = block * N + key
        inside = position < prefix
        page = tl.load(table_ptr + position // PAGE, mask=inside, other=0).to(tl.int64)
        key_dim = inside[:, None] & whole[None, :]
        at_key = page * keys_page + position % PAGE * keys_place
        at_value = page * values_page + position % PAGE * values_place
        k = tl.load(keys_ptr + at_key[:, None] + dim[None, :], mask=key_dim, other=0.0)
        v = tl.load(values_ptr + at_value[:, None] + dim[None, :], mask=key_dim, other=0.0)
        if WIDE:
            k, v = k.to(tl.float32), v.to(tl.float32)
        seen = inside[None, :]
        if WINDOWED:
            seen = seen & (position[None, :] > lowest[:, None])
        best, total, out = _absorb(q, k, v, seen, scale, best, total, out)

    k_ptr += kv_head * k_head
    v_ptr += kv_head * v_head
    mask_ptr += request * mask_request
    for block in range(tl.maximum(begin, tail_first), end):
        other = (block - tail_first) * N + key
        inside = other < tail
        key_dim = inside[:, None] & whole[None, :]
        k = tl.load(k_ptr + (other * k_row)[:, None] + dim[None, :], mask=key_dim, other=0.0)
        v = tl.load(v_ptr + (other * v_row)[:, None] + dim[None, :], mask=key_dim, other=0.0)
        if WIDE:
            k, v = k.to(tl.float32), v.to(tl.float32)
        at_mask = (row * mask_row)[:, None] + other[None, :]
        seen = tl.load(mask_ptr + at_mask, mask=there[:, None] & inside[None, :], other=0) != 0
        best, total, out = _absorb(q, k, v, seen, scale, best, total, out)

    # a row that saw no key here has no sum: its part is 0
    some = total > 0
    total = tl.where(some, total, 1.0)
    out = out / total[:, None]
    if SPLITS == 1:
        to = out_ptr + (row * out_row + head * out_head)[:, None] + dim[None, :]
        tl.store(to, out.to(out_ptr.dtype.element_ty), mask=row_dim)
    else:
        part = (split * total_rows + first_row + row) * HEADS + head
        tl.store(part_ptr + (part * HEAD_DIM)[:, None] + dim[None, :], out, mask=row_dim)
        tl.store(lse_ptr + part, tl.where(some, best + tl.log2(total), -float("inf")), mask=there)


@triton.jit(do_not_specialize=["rows", "tail", "total_rows", "window"])
def _combine_kernel(  # type: ignore[no-untyped-def]
    part_ptr,
    lse_ptr,
    prefix_ptr,
    starts_ptr,
    out_ptr,
    rows,
    tail,
    total_rows,
    window,
    out_request,
    out_row,
    out_head,
    SPLITS: tl.constexpr,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    N: tl.constexpr,
    DIM: tl.constexpr,
    EACH: tl.constexpr,
    VARLEN: tl.constexpr,
):
    row = tl.program_id(0)
    request = tl.program_id(2).to(tl.int64)
    first_row = request * rows
    if VARLEN:
        first_row = tl.load(starts_ptr + request).to(tl.int64)
        rows = (tl.load(starts_ptr + request + 1) - first_row).to(tl.int32)
        tail = rows
        out_ptr += first_row * out_row
    else:
        out_ptr += request * out_request
    if row >= rows:
        return
    prefix = tl.load(prefix_ptr + request)
    first, _, end, blocks = _share(prefix, tail, window, N, SPLITS)
    split = tl.arange(0, SPLITS)
    dim = tl.arange(0, DIM)
    # programs without keys wrote nothing
    wrote = first + split * blocks < end
    for i in tl.static_range(EACH):
        head = tl.program_id(1) * EACH + i
        part = (split * total_rows + first_row + row) * HEADS + head
        lse = tl.load(lse_ptr + part, mask=wrote, other=-float("inf"))
        inside = wrote[:, None] & (dim < HEAD_DIM)[None, :]
        parts = tl.load(part_ptr + (part * HEAD_DIM)[:, None] + dim[None, :], mask=inside, other=0.0)
        best = tl.max(lse, axis=0)
        weights = tl.exp2(lse - tl.where(best == -float("inf"), 0.0, best))
        share = tl.sum(weights, axis=0)
        out = tl.sum(parts * weights[:, None], axis=0) / tl.where(share > 0, share, 1.0)
        to = out_ptr + row * out_row + head * out_head + dim
        tl.store(to, out.to(out_ptr.dtype.element_ty), mask=dim < HEAD_DIM)


@dataclass(frozen=True)
class Gpu:
    """`processors` multiprocessors, and the `shared` memory in bytes that one program may have."""

    processors: int
    shared: int

    @classmethod
    @cache
    def of(cls, device: torch.device) -> "Gpu":
        if device.type != "cuda":
            return cls(1, 1 << 20)
        found = torch.cuda.get_device_properties(device)
        # an older PyTorch does not say it; data centre GPUs since Hopper have 227 KiB
        known = (227 if found.major in (9, 10) else 99) << 10
        return cls(found.multi_processor_count, getattr(found, "shared_memory_per_block_optin", known))


@dataclass(frozen=True)
class Plan:
    """How a shape's work is cut: constants of a captured graph."""

    splits: int
    tile: int  # query rows x heads of a program
    block: int  # keys at a time
    warps: int
    stages: int

    @classmethod
    def of(
        cls,
        batch: int,
        rows: int,
        heads: int,
        kv_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        longest: int,
        gpu: Gpu,
    ) -> "Plan":
        """For `batch` requests of at most `rows` query rows.

        `longest`: the keys of a request for which the plan should be good; it is right for any number.
        """
        packed = rows * heads // kv_heads
        if dtype == torch.float32:  # takes twice the registers and the shared memory
            tile, block, warps, stages = (16, 32, 8, 1) if packed <= 16 else (32, 16, 8, 1)
        else:
            # a tile of 128 takes 136 KiB; before Hopper its registers spill too
            most = 128 if gpu.shared >= 200 << 10 and head_dim <= 128 else 64
            tile = min(most, max(16, triton.next_power_of_2(packed)))
            block, warps, stages = 32 if tile == 64 else 64, 8 if tile == 128 else 4, 3
            if head_dim > 128:
                block, warps, stages = 32, 8, 2
        programs = batch * kv_heads * triton.cdiv(packed, tile)
        # registers let one program of 8 warps stand on a multiprocessor, two of 4
        room = gpu.processors if warps == 8 else 2 * gpu.processors
        blocks = triton.cdiv(longest, block) + triton.cdiv(rows, block)

        def cost(splits: int) -> int:
            """In blocks read one after the other; one to start, and a part, written and read, as many as it has bytes."""
            part = 2 * tile // block if splits > 1 else 0
            return triton.cdiv(programs * splits, room) * (triton.cdiv(blocks, splits) + 1 + part)

        splits = min((1 << n for n in range(MOST_SPLITS.bit_length())), key=cost)
        return cls(splits, tile, block, warps, stages)


@dataclass(frozen=True)
class Scratch:
    """Where parts stand between the two kernels, made once for all layers and all shapes: `part` fp32 [splits * T * A * D],
    `lse` fp32 [splits * T * A]."""

    part: Tensor
    lse: Tensor

    @classmethod
    def make(cls, shapes: Iterable[tuple[Plan, int]], heads: int, head_dim: int, device: torch.device) -> "Scratch":
        """For the largest of `shapes`: a plan and the rows T of all its requests."""
        most = max((plan.splits * rows for plan, rows in shapes if plan.splits > 1), default=0) * heads
        part = torch.empty(most * head_dim, dtype=torch.float32, device=device)
        return cls(part, torch.empty(most, dtype=torch.float32, device=device))


def paged_tree_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask_BRS: Tensor,
    keys_PUKD: Tensor,
    values_PUKD: Tensor,
    table_BN: Tensor,
    prefix_B: Tensor,
    scale: float,
    plan: Plan,
    scratch: Scratch,
    out: Tensor,
    starts_B1: Tensor | None = None,
    window: int | None = None,
    depth_BR: Tensor | None = None,
) -> Tensor:
    """`out`: every row over the first `prefix_B` places of its request's pages, and of the tail over what the mask shows.

    With every request as wide as the others `q` and `out` are [B, R, A, D], `k` and `v` [B, S, K, D]: a tree's own rows
    (S = R), or all rows of a draft so far. With `starts_B1` int32 request b has the rows starts[b] .. starts[b + 1] of
    [T, A, D] and [T, K, D], at most R, and its tail is those rows; other rows of `out` stay as they are.

    `mask_BRS` bool or int8: what a row sees of its tail. `table_BN` int32, `prefix_B` int32: 0 for a request that is not
    there, whose rows are 0 where their mask shows nothing. `window`: a row sees the last `window` places with its own,
    which is `prefix + depth_BR` (int32); it must be longer than a tree is deep. Keys may lie in any strides but the last
    dimension's, 1. Raises ValueError for other strides, and for a scratch that is too small.
    """
    batch, rows, tail = mask_BRS.shape
    heads, head_dim = q.shape[-2:]
    kv_heads = keys_PUKD.shape[2]
    total_rows = batch * rows if starts_B1 is None else min(len(q), batch * rows)
    named = {"q": q, "k": k, "v": v, "mask": mask_BRS, "keys": keys_PUKD, "values": values_PUKD, "out": out}
    for name, x in named.items():
        if x.stride(-1) != 1:
            raise ValueError(f"{name}'s last dimension has stride {x.stride(-1)}; the kernel reads it as 1")
    if plan.splits > 1 and scratch.lse.numel() < plan.splits * total_rows * heads:
        raise ValueError(
            f"scratch for {scratch.lse.numel()} parts, needed are {plan.splits} splits x {total_rows} rows x {heads} heads"
        )
    if window is not None and depth_BR is None:
        raise ValueError("a window needs the rows' depths")
    # requests that do not lie apart by a stride begin where `starts_B1` says
    apart = [(0,) * (starts_B1 is not None) + x.stride()[:-1] for x in (q, k, v, out)]
    q_strides, k_strides, v_strides, out_strides = apart
    reach = 1 << 30 if window is None else window
    dim = max(16, triton.next_power_of_2(head_dim))
    starts = prefix_B if starts_B1 is None else starts_B1
    depth = prefix_B if depth_BR is None else depth_BR
    _split_kernel[(triton.cdiv(rows * (heads // kv_heads), plan.tile), kv_heads * plan.splits, batch)](
        q,
        k,
        v,
        mask_BRS.view(torch.int8),
        keys_PUKD,
        values_PUKD,
        table_BN,
        prefix_B,
        starts,
        depth,
        out,
        scratch.part,
        scratch.lse,
        scale * 1.4426950408889634,  # exponents of 2
        rows,
        tail,
        total_rows,
        reach,
        *q_strides,
        *k_strides,
        *v_strides,
        *mask_BRS.stride()[:2],
        *keys_PUKD.stride()[:3],
        *values_PUKD.stride()[:3],
        table_BN.stride(0),
        depth.stride(0),
        *out_strides,
        SPLITS=plan.splits,
        PAGE=keys_PUKD.shape[1],
        HEADS=heads,
        GROUPS=heads // kv_heads,
        HEAD_DIM=head_dim,
        M=plan.tile,
        N=plan.block,
        DIM=dim,
        VARLEN=starts_B1 is not None,
        WINDOWED=window is not None,
        WIDE=triton.knobs.runtime.interpret,
        num_warps=plan.warps,
        num_stages=plan.stages,
    )
    if plan.splits > 1:
        each = math.gcd(heads, max(1, 16 // plan.splits))
        _combine_kernel[(rows, heads // each, batch)](
            scratch.part,
            scratch.lse,
            prefix_B,
            starts,
            out,
            rows,
            tail,
            total_rows,
            reach,
            *out_strides,
            SPLITS=plan.splits,
            HEADS=heads,
            HEAD_DIM=head_dim,
            N=plan.block,
            DIM=dim,
            EACH=each,
            VARLEN=starts_B1 is not None,
            num_warps=2,
        )
    return out
