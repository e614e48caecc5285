"""`absorb` against the text that was accepted: prompt or root, path, bonus."""

import pytest
import torch
from batches import DEVICE, SLOTS, Batch, integer, uniform_batch, varlen_batch
from eagle3_vllm.kernels.absorb import AbsorbBuffers, absorb

BATCHES = ((1, 1), (3, 2), (5, 5))
MAX_LEN = 150


def hold(batch: Batch, rows: int, depth: int, gen: torch.Generator) -> None:
    requests, real, size = batch.requests, batch.real, batch.requests.size
    tokens = batch.tokens if requests.varlen else size * rows
    rows_BD = torch.full((size, depth), -1)
    sampled_B, rejected_B = torch.zeros(size, dtype=torch.int32), torch.zeros(size, dtype=torch.int32)
    for b in range(real):
        count = integer(min(depth, int(batch.rows_B[b]) - 1) + 1, gen)
        rows_BD[b, :count] = torch.randperm(int(batch.rows_B[b]) - 1, generator=gen)[:count].sort().values + 1
        sampled_B[b], rejected_B[b] = count + 1, batch.rows_B[b] - count - 1
        if int(batch.rows_B[b]) == 1 and integer(2, gen):
            sampled_B[b] = 0  # a part of a prompt
    ids_T = torch.randint(100, 200, (tokens,), generator=gen)
    last_sampled_S1, next_prefill_S = (torch.randint(low, low + 100, (SLOTS,), generator=gen) for low in (200, 300))
    most = int(batch.length_B.max()) if requests.varlen else rows
    out = AbsorbBuffers.make(size, tokens + 2, DEVICE)
    for name, buffer in vars(out).items():
        buffer.fill_(True if name == "drafting_B" else -77)
    absorb(
        requests, most, rows_BD.to(DEVICE), sampled_B.to(DEVICE), rejected_B.to(DEVICE), ids_T.int().to(DEVICE),
        batch.seq_lens_B.to(DEVICE), last_sampled_S1[:, None].to(DEVICE), next_prefill_S.int().to(DEVICE), MAX_LEN, out,
    )  # fmt: skip
    for b in range(real):
        start, length, count = int(batch.query_start_B1[b]), int(batch.length_B[b]), int((rows_BD[b] >= 0).sum())
        root = length - int(batch.rows_B[b])
        text = [*range(root + 1), *(root + row for row in rows_BD[b, :count].tolist())]  # rows in a text's order
        behind = last_sampled_S1 if sampled_B[b] > 0 else next_prefill_S
        ids = [int(ids_T[start + row]) for row in text[1:]] + [int(behind[batch.slots_B[b]])]
        order_T, found_T = out.order_T[start : start + length].tolist(), out.ids_T[start : start + length].tolist()
        assert order_T[: len(text)] == [start + row for row in text]
        assert order_T[len(text) :] == [start + row for row in range(len(text), length)]
        assert found_T == ids + [0] * (length - len(ids))
        before = int(batch.seq_lens_B[b]) - length
        positions = [min(before + row, MAX_LEN - 1) for row in range(length)]
        assert out.positions_T[start : start + length].tolist() == positions
        assert int(out.last_B[b]) == start + len(text) - 1 and int(out.slots_B[b]) == int(batch.slots_B[b])
        assert int(out.prefix_B[b]) == int(batch.seq_lens_B[b] - rejected_B[b]) == before + len(text)
        assert bool(out.drafting_B[b]) == bool(sampled_B[b] > 0)
    assert out.slots_B[real:].eq(-1).all() and out.prefix_B[real:].eq(0).all() and not out.drafting_B[real:].any()
    if requests.varlen:
        assert out.last_B[real:].eq(0).all()
    else:
        assert out.last_B[real:].tolist() == [b * rows for b in range(real, size)]
        order_T = torch.arange(real * rows, size * rows)
        assert torch.equal(out.order_T[real * rows : size * rows].cpu(), order_T)
        assert out.ids_T[real * rows : size * rows].eq(0).all()
    assert out.order_T[tokens:].eq(-77).all() and out.ids_T[tokens:].eq(-77).all()


@pytest.mark.parametrize("rows, depth", [(1, 1), (2, 1), (17, 8), (61, 8), (65, 3)])
def test_the_rows_of_a_text(rows: int, depth: int) -> None:
    gen = torch.Generator().manual_seed(rows + depth)
    for turn, (size, real) in enumerate(BATCHES * 2):
        hold(uniform_batch(size, real, rows, gen, on_device=turn % 2 == 0), rows, depth, gen)
        hold(varlen_batch(size, real, rows, gen, prompts=turn % 2 == 0), rows, depth, gen)
