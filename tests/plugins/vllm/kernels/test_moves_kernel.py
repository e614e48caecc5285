"""`move` against the plugin's own `move_rows`, over both layouts of vLLM's caches."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from batches import DEVICE, integer
from eagle3_vllm.attention import cpu, layout
from eagle3_vllm.kernels.moves import KVTable, move
from torch import Tensor

from eagle3_serving.tree import Acceptance, kv_moves

ROWS, DEPTH = 9, 5


def accepted(batch: int, gen: torch.Generator) -> Acceptance:
    """Ascending rows, of every request some; of the first the path in place, of the last none."""
    rows_BD = torch.full((batch, DEPTH), -1)
    for b in range(batch - 1):
        count = integer(DEPTH + 1, gen, low=1)
        chosen = torch.randperm(ROWS - 1, generator=gen)[:count].sort().values + 1
        rows_BD[b, :count] = torch.arange(1, count + 1) if b == 0 else chosen
    return Acceptance(rows_BD, (rows_BD >= 0).sum(1), torch.zeros(batch))


def moved(cache: Tensor, pages: Any, head_dim: int, slots_T: Tensor, acceptance: Acceptance, root_B: Tensor) -> Tensor:
    """A copy of the cache after the core's moves, every row read before any is written."""
    cache = cache.clone()
    moves = kv_moves(acceptance, root_B)
    there_BD = moves.source_BD >= 0
    source_X, target_X = (slots_T[x_BD[there_BD]] for x_BD in (moves.source_BD, moves.destination_BD))
    for rows in pages(cache, head_dim):
        places = rows.shape[1]
        rows[target_X // places, target_X % places] = rows[source_X // places, source_X % places]
    return cache


@pytest.mark.parametrize(
    "dtype, heads, head_dim",
    [(torch.bfloat16, 2, 64), (torch.float32, 3, 80), (torch.float16, 1, 6), (torch.uint8, 2, 5)],
)
@pytest.mark.parametrize("order", ["NHD", "HND"])
@pytest.mark.parametrize("batch", [1, 3, 5])
def test_the_flash_layout(dtype: torch.dtype, heads: int, head_dim: int, order: str, batch: int) -> None:
    gen = torch.Generator().manual_seed(batch)
    layers, pages, places = 3, 2 + batch * ROWS // 4, 4
    shape = (pages, places, heads, 2 * head_dim) if order == "NHD" else (pages, heads, places, 2 * head_dim)
    raw = [
        torch.randint(0, 256, (*shape, dtype.itemsize), generator=gen).to(torch.uint8).view(dtype).squeeze(-1)
        for _ in range(layers)
    ]
    # not a number is not equal to itself: bits are compared
    caches = [(x.transpose(1, 2) if order == "NHD" else x).to(DEVICE) for x in raw]
    slots_GT = torch.stack([torch.randperm(pages * places, generator=gen)[: batch * ROWS] for _ in range(2)])
    acceptance, root_B = accepted(batch, gen), torch.arange(batch) * ROWS
    groups = [0, 1, 0]
    wanted = [
        moved(cache.cpu(), layout.pages, head_dim, slots_GT[group], acceptance, root_B)
        for cache, group in zip(caches, groups, strict=True)
    ]
    parts = [(group, cache.transpose(1, 2)) for cache, group in zip(caches, groups, strict=True)]
    move(KVTable.of(parts), slots_GT.to(DEVICE), acceptance.rows_BD.to(DEVICE), root_B.to(DEVICE))
    for cache, expected in zip(caches, wanted, strict=True):
        assert torch.equal(cache.cpu().contiguous().view(torch.uint8), expected.contiguous().view(torch.uint8))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_cpu_s_layout(dtype: torch.dtype) -> None:
    """Keys lie transposed in their pages; keys and values are two parts."""
    gen = torch.Generator().manual_seed(0)
    batch, pages, heads, places, head_dim = 3, 20, 2, 4, 16
    caches = [torch.randn(pages, heads, places, 2 * head_dim, generator=gen).to(dtype) for _ in range(2)]
    acceptance, root_B = accepted(batch, gen), torch.arange(batch) * ROWS
    slots_T = torch.randperm(pages * places, generator=gen)[: batch * ROWS]
    moves = kv_moves(acceptance, root_B)
    there_BD = moves.source_BD >= 0
    wanted = []
    for cache in caches:
        layer = SimpleNamespace(kv_cache=cache.clone(), head_size=head_dim)
        cpu.move_rows(layer, slots_T[moves.source_BD[there_BD]], slots_T[moves.destination_BD[there_BD]])
        wanted.append(layer.kv_cache)
    caches = [cache.to(DEVICE) for cache in caches]
    parts = []
    for cache in caches:
        keys, values = cpu.pages(cache, head_dim)
        parts += [(0, keys.permute(0, 3, 1, 2)), (0, values.transpose(1, 2))]
    move(KVTable.of(parts), slots_T[None].to(DEVICE), acceptance.rows_BD.to(DEVICE), root_B.to(DEVICE))
    assert all(torch.equal(cache.cpu(), expected) for cache, expected in zip(caches, wanted, strict=True))


def test_a_row_without_a_slot_stays() -> None:
    cache = torch.arange(16.0, device=DEVICE).view(1, 16, 1, 1)
    rows_BD, root_B = torch.tensor([[2, 3]], device=DEVICE), torch.zeros(1, dtype=torch.long, device=DEVICE)
    before = cache.clone()
    move(KVTable.of([(0, cache)]), torch.tensor([[4, -1, -1, 7]], device=DEVICE), rows_BD, root_B)
    assert torch.equal(cache, before)
    move(KVTable.of([(0, cache)]), torch.tensor([[4, 5, 6, 7]], device=DEVICE), rows_BD, root_B)
    assert cache.flatten().tolist() == [0, 1, 2, 3, 4, 6, 7, *range(7, 16)]


def test_rows_are_moved_in_the_widest_words_that_fit() -> None:
    wide = torch.zeros(2, 4, 2, 64, dtype=torch.bfloat16)
    assert KVTable.of([(0, wide)]).word == 8
    assert KVTable.of([(0, wide[..., :3])]).word == 2
    assert KVTable.of([(0, wide.transpose(1, 3))]).word == 2
    with pytest.raises(ValueError, match="no KV cache"):
        KVTable.of([])
    with pytest.raises(ValueError, match=r"\(2, 4, 2\)"):
        KVTable.of([(0, wide[..., 0])])
