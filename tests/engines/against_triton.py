"""Run by SGLang's interpreter: the stand-in kernels against SGLang's own Triton kernels under Triton's interpreter.

Prints one JSON line: how many cases each operator was held to, and what differed.
"""

import json
import os
import sys
from collections import Counter
from collections.abc import Callable
from itertools import product

os.environ["TRITON_INTERPRET"] = "1"
os.environ["SGLANG_USE_CPU_ENGINE"] = "1"

import sgl_kernel
import torch
from torch import Tensor

cases: Counter[str] = Counter()
differ: list[str] = []


def hold(name: str, ours: Tensor, theirs: Tensor, tolerance: float = 0.0) -> None:
    cases[name] += 1
    same = torch.equal(ours, theirs) if tolerance == 0 else torch.allclose(ours, theirs, atol=tolerance, rtol=tolerance)
    if not same:
        differ.append(f"{name} #{cases[name]}")


def table(generator: torch.Generator, requests: int, width: int) -> Tensor:
    """A pool's `req_to_token`: every slot once."""
    return torch.randperm(requests * width, generator=generator).view(requests, width).int()


def cache_locations(generator: torch.Generator) -> None:
    from sglang.kernels.ops.speculative import cache_locs
    from sglang.kernels.ops.speculative.eagle import fill_accept_out_cache_loc, fill_bonus_tokens
    from sglang.srt.mem_cache import allocation

    pool = table(generator, 5, 160)
    requests_B = torch.tensor([3, 0, 4])
    start_B = torch.tensor([7, 90, 0])
    for count_B in (torch.tensor([4, 4, 4]), torch.tensor([1, 40, 33])):
        end_B = start_B + count_B
        total = int(count_B.sum())
        ours, theirs = torch.zeros(total, dtype=torch.int64), torch.zeros(total, dtype=torch.int64)
        sgl_kernel.assign_extend_cache_locs_cpu(requests_B, pool, start_B, end_B, ours, 160)
        cache_locs.assign_extend_cache_locs[(3,)](requests_B, pool, start_B, end_B, theirs, 160, 4)
        hold("assign_extend_cache_locs", ours, theirs)
        written, writes = torch.arange(1000, 1000 + total), (pool.clone(), pool.clone())
        sgl_kernel.assign_req_to_token_pool_cpu(requests_B, writes[0], start_B, end_B, written, 160)
        allocation.assign_req_to_token_pool[(3,)](requests_B, writes[1], start_B, end_B, written, 160, 4)
        hold("assign_req_to_token_pool", *writes)
    for top_k, steps in ((1, 3), (4, 5), (8, 2)):
        ours, theirs = (torch.zeros(3 * top_k * steps, dtype=torch.int64) for _ in range(2))
        sgl_kernel.assign_draft_cache_locs_contiguous_cpu(requests_B, pool, start_B, ours, 160, top_k, steps)
        cache_locs.assign_draft_cache_locs_contiguous[(3,)](requests_B, pool, start_B, theirs, 160, top_k, steps)
        hold("assign_draft_cache_locs_contiguous", ours, theirs)
    accepted_BD = torch.tensor([[0, 2, -1], [3, -1, -1], [6, 7, 8]], dtype=torch.int32)
    slots = torch.arange(100, 109)
    ours, theirs = torch.zeros(9, dtype=torch.int64), torch.zeros(9, dtype=torch.int64)
    sgl_kernel.fill_accept_out_cache_loc_cpu(accepted_BD, slots, ours)
    fill_accept_out_cache_loc[(9,)](accepted_BD, slots, theirs, 16)
    hold("fill_accept_out_cache_loc", ours, theirs)
    tokens, lengths_B = torch.arange(50, 59), torch.tensor([2, 1, 3], dtype=torch.int32)
    ours, theirs = torch.zeros(3, dtype=torch.int32), torch.zeros(3, dtype=torch.int32)
    sgl_kernel.fill_bonus_tokens_cpu(tokens, lengths_B, ours, 3)
    fill_bonus_tokens[(3,)](tokens, lengths_B, theirs, 3)
    hold("fill_bonus_tokens", ours, theirs)


def random_tree(generator: torch.Generator, batch: int, top_k: int, steps: int, tokens: int) -> tuple[Tensor, Tensor]:
    """Parents and chosen candidates as a draft makes them."""
    scores, chosen = torch.zeros(batch, 1), []
    parents = [torch.full((batch, 1), -1)]
    width = 1
    for step in range(steps):
        scores_BC = (scores[:, :, None] + torch.rand(batch, width, top_k, generator=generator).log()).flatten(1)
        chosen.append(scores_BC)
        best = scores_BC.topk(min(top_k, scores_BC.shape[1]))
        first = 0 if step == 0 else top_k + (step - 1) * top_k**2
        parents.append(best.indices + first)
        scores, width = best.values, best.values.shape[1]
    selected = torch.cat(chosen, 1).topk(tokens - 1).indices.sort(1).values
    return torch.cat(parents[:-1], 1) if steps > 1 else parents[0][:, :0], selected


def trees(generator: torch.Generator) -> None:
    from sglang.kernels.ops.speculative import spec_tree

    lengths_B = torch.tensor([5, 0, 17])
    for top_k, steps, tokens in ((1, 3, 4), (2, 3, 6), (4, 5, 12), (8, 4, 32), (4, 1, 3)):
        parents, selected = random_tree(generator, 3, top_k, steps, tokens)
        for mode in (0, 1):
            size = 3 * tokens * tokens + (0 if mode else int(lengths_B.sum()) * tokens)
            made: list[list[Tensor]] = []
            kernels: tuple[Callable[..., None], ...] = (
                sgl_kernel.build_tree_kernel_efficient_cpu,
                spec_tree.sgl_build_tree_kernel_triton,
            )
            for build in kernels:
                mask, place = torch.ones(size, dtype=torch.bool), torch.zeros(3 * tokens, dtype=torch.int64)
                links = [torch.full((3, tokens), -1) for _ in range(3)]
                # Triton reads a row of parents even where one step has none
                rows = parents if parents.shape[1] else torch.full((3, top_k + 1), -1)
                build(
                    rows, selected, lengths_B, mask, place, *links, top_k, steps, tokens, spec_tree.TreeMaskMode(mode)
                )
                made.append([mask, place.view(3, tokens)[:, 1:], *links])
            for ours, theirs in zip(*made, strict=True):
                hold("build_tree_kernel_efficient", ours, theirs)
            index, child, sibling = made[0][2:]
            candidates = torch.randint(0, 3, (3, tokens), generator=generator)
            wanted = torch.randint(0, 3, (3, tokens), generator=generator)
            walked: list[list[Tensor]] = []
            for verify in (sgl_kernel.verify_tree_greedy_cpu, spec_tree.verify_tree_greedy_triton):
                predicts = torch.zeros(3 * tokens, dtype=torch.int32)
                accepted, count = torch.full((3, steps + 1), -1, dtype=torch.int32), torch.zeros(3, dtype=torch.int32)
                verify(predicts, accepted, count, candidates, index, child, sibling, wanted)
                walked.append([predicts, accepted, count])
            for ours, theirs in zip(*walked, strict=True):
                hold("verify_tree_greedy", ours, theirs)


def attention(generator: torch.Generator) -> None:
    from sglang.kernels.ops.attention.extend_attention import extend_attention_fwd

    heads, kv_heads, size, scale = 4, 2, 16, 0.25
    pool = table(generator, 4, 64)
    k_cache, v_cache = (torch.randn(256, kv_heads, size, generator=generator) for _ in range(2))
    requests_B = torch.tensor([2, 0, 3])
    prefix_B = torch.tensor([9, 0, 30])
    for rows, tree, window in product((1, 6), (False, True), (0, 5)):
        count_B = torch.full((3,), rows)
        length_B = prefix_B + count_B
        query = torch.randn(3 * rows, heads, size, generator=generator)
        mask_BRR = torch.ones(3, rows, rows, dtype=torch.bool).tril()
        if tree:
            mask_BRR &= torch.rand(3, rows, rows, generator=generator) < 0.5
            mask_BRR |= torch.eye(rows, dtype=torch.bool)
        ours, theirs = torch.zeros_like(query), torch.zeros_like(query)
        start_B = torch.arange(3) * rows
        torch.ops.sgl_kernel.extend_attention_cpu(
            query, None, None, ours, k_cache, v_cache, 1.0, 1.0, pool, requests_B, length_B, count_B, start_B, rows,
            scale, 0.0, False, window, None, None, mask_BRR.flatten() if tree else None, True,
        )  # fmt: skip
        spans = list(zip(requests_B.tolist(), prefix_B.tolist(), strict=True))
        new = torch.cat([pool[request, before : before + rows] for request, before in spans]).long()
        old = torch.cat([pool[request, :before] for request, before in spans]).long()
        qo_indptr = torch.arange(4) * rows
        kv_indptr = torch.nn.functional.pad(prefix_B.cumsum(0), (1, 0))
        full = [torch.cat([torch.ones(rows, before, dtype=torch.bool), mask], 1).flatten() for before, mask in zip(prefix_B.tolist(), mask_BRR, strict=True)]  # fmt: skip
        mask_indptr = torch.tensor([0, *[part.numel() for part in full]]).cumsum(0)
        extend_attention_fwd(
            query, k_cache[new].contiguous(), v_cache[new].contiguous(), theirs, k_cache, v_cache, qo_indptr, kv_indptr,
            old, torch.cat(full) if tree else None, True, mask_indptr if tree else None, rows, 1.0, 1.0, sm_scale=scale,
            sliding_window_size=window - 1, window_kv_offsets=torch.zeros(3, dtype=torch.int32),
        )  # fmt: skip
        hold("extend_attention", ours, theirs, 1e-4)
        if rows == 1 and not window:
            again, keys = torch.zeros_like(query), (k_cache[new], v_cache[new])
            caches = k_cache.clone(), v_cache.clone()
            for cache in caches:
                cache[new] = 0.0  # written by the operator itself
            torch.ops.sgl_kernel.decode_attention_cpu(
                query, *caches, 1.0, 1.0, again, *keys, new, torch.zeros(1), pool, requests_B, length_B, scale, 0.0,
                False, 0, None, None,
            )  # fmt: skip
            hold("decode_attention", again, theirs, 1e-4)


def moves(generator: torch.Generator) -> None:
    """No Triton kernel takes a CPU's addresses: held to plain indexing, overlapping rows among them."""
    buffers = [torch.randn(20, 3, 4, generator=generator) for _ in range(4)]
    target, source = torch.tensor([3, 4, 5]), torch.tensor([4, 9, 3])
    wanted = [buffer.clone() for buffer in buffers]
    for buffer in wanted:
        buffer[target] = buffer[source]
    pointers = torch.tensor([buffer.data_ptr() for buffer in buffers], dtype=torch.uint64)
    strides = torch.tensor([buffer.stride(0) * buffer.element_size() for buffer in buffers])
    sgl_kernel.copy_all_layer_kv_cache_cpu(pointers, strides, target, source)
    for ours, theirs in zip(buffers, wanted, strict=True):
        hold("copy_all_layer_kv_cache", ours, theirs)


def main() -> None:
    generator = torch.Generator().manual_seed(0)
    for part in (cache_locations, trees, attention, moves):
        part(generator)
    print(json.dumps({"cases": cases, "differ": differ}))
    sys.exit(bool(differ))


if __name__ == "__main__":
    main()
