"""`accept` against the core's `accept_greedy`, and vLLM's counts against what its own functions say they are."""

import pytest
import torch
from batches import DEVICE, SLOTS, Batch, integer, random_parents, uniform_batch, varlen_batch
from eagle3_vllm.kernels.accept import AcceptBuffers, accept
from eagle3_vllm.kernels.begin import TreeBuffers, begin
from eagle3_vllm.kernels.requests import Requests
from tree_rows import TreeRows, tree_rows

from eagle3_serving.tree import PADDING, accept_greedy

SHAPES = ((2, 1), (17, 4), (17, 8), (61, 8), (65, 3))
BATCHES = ((1, 1), (3, 2), (5, 5))


def hold(parents_SK: torch.Tensor, batch: Batch, rows: int, depth: int, checked: bool, gen: torch.Generator) -> int:
    """The longest accepted path."""
    requests, real = batch.requests, batch.real
    extra = 17 if checked else 0  # buffers made for larger trees
    parents_BK = parents_SK[batch.slots_B]
    seq_lens_B = batch.seq_lens_B
    wanted = tree_rows(parents_BK, batch.rows_B, batch.query_start_B1[1:], seq_lens_B[:real].long(), depth, 0)
    tokens = batch.tokens if requests.varlen else requests.size * rows
    logits = int(batch.cu_num_logits_B1[-1]) if requests.varlen else tokens
    ids_T = torch.randint(0, 3, (tokens,), generator=gen)
    chosen_L = torch.randint(0, 3, (logits,), generator=gen)
    lead_through(wanted, batch, ids_T, chosen_L, gen)
    invalid_L = torch.rand(logits, generator=gen) < 0.05 if checked else None
    prefill_len_S = torch.zeros(SLOTS, dtype=torch.int32)
    # the last request's prompt is not whole, where it has no tree
    chunked_B = torch.zeros(real, dtype=torch.bool)
    if int(batch.rows_B[-1]) == 1 or parents_SK[batch.slots_B[-1]].eq(PADDING).all():
        prefill_len_S[batch.slots_B[-1]] = 10_000
        chunked_B[-1] = True

    trees, out = (
        TreeBuffers.make(requests.size, rows, DEVICE),
        AcceptBuffers.make(requests.size, rows + extra, depth + extra, DEVICE),
    )
    for buffer in vars(out).values():
        buffer.fill_(-77)
    begin(
        parents_SK.to(DEVICE),
        requests,
        seq_lens_B.to(DEVICE),
        depth,
        trees,
        torch.zeros(tokens, dtype=torch.long, device=DEVICE),
    )
    sums = torch.tensor([5, 6, 7, 8, 9], device=DEVICE)
    accept(
        trees, requests, ids_T.int().to(DEVICE), chosen_L.to(DEVICE), seq_lens_B.to(DEVICE), prefill_len_S.to(DEVICE), out,
        sums, None if invalid_L is None else invalid_L.to(DEVICE),
    )  # fmt: skip

    logit_BR = batch.cu_num_logits_B1[:-1, None] + wanted.local_BR
    tokens_BR = ids_T[wanted.index_BR]
    if invalid_L is not None:
        tokens_BR = tokens_BR.masked_fill(invalid_L[logit_BR], -1)
    reference = accept_greedy(tokens_BR, wanted.layout, chosen_L[logit_BR], depth)
    assert torch.equal(out.rows_BD[:real, :depth].cpu(), reference.rows_BD) and out.rows_BD[:, depth:].eq(-1).all()
    assert torch.equal(out.count_B[:real].cpu(), reference.count_B)
    assert torch.equal(out.bonus_B[:real].cpu(), reference.bonus_B)
    sampled_BR = torch.zeros(real, rows + extra, dtype=torch.long)
    for b, count in enumerate(reference.count_B.tolist()):
        path = tokens_BR[b, reference.rows_BD[b, :count]]
        sampled_BR[b, : count + 1] = torch.cat([path, reference.bonus_B[b : b + 1]])
    assert torch.equal(out.sampled_BR[:real].cpu(), sampled_BR)
    yielded_B = (reference.count_B + 1).masked_fill(chunked_B, 0)
    rejected_B = (batch.rows_B - yielded_B).masked_fill(chunked_B, 0)
    assert torch.equal(out.num_sampled_B[:real].cpu(), yielded_B.int())
    assert torch.equal(out.num_rejected_B[:real].cpu(), rejected_B.int())
    nodes_B = (wanted.layout.parents_BN[:, 1:] != PADDING).sum(1)
    counts = [int((nodes_B > 0).sum()), int(nodes_B.sum()), int(reference.count_B.sum())]
    assert sums.tolist() == [5 + counts[0], 6 + counts[1], 7 + counts[2], 8, 9]
    padding = (
        out.rows_BD[real:],
        out.count_B[real:],
        out.sampled_BR[real:],
        out.num_sampled_B[real:],
        out.num_rejected_B[real:],
    )
    assert padding[0].eq(-1).all() and all(value.eq(0).all() for value in padding[1:])
    return int(reference.count_B.max())


def lead_through(
    rows: TreeRows, batch: Batch, ids_T: torch.Tensor, chosen_L: torch.Tensor, gen: torch.Generator
) -> None:
    """Of every other request a random row's path agrees with the target, or few paths would be long."""
    for b in range(0, batch.real, 2):
        row = integer(int(batch.rows_B[b]), gen)
        parents = rows.layout.parents_BN[b].tolist()
        while parents[row] >= 0:
            ids_T[rows.index_BR[b, row]] = chosen_L[batch.cu_num_logits_B1[b] + parents[row]]
            row = parents[row]


@pytest.mark.parametrize("rows, depth", SHAPES)
@pytest.mark.parametrize("varlen", [False, True], ids=["uniform", "varlen"])
def test_acceptance_is_the_core_s(rows: int, depth: int, varlen: bool) -> None:
    gen = torch.Generator().manual_seed(rows * 10 + depth)
    parents_SK = random_parents(rows - 1, depth, gen)
    longest = 0
    for turn, (size, real) in enumerate(BATCHES * 2):
        if varlen:
            batch = varlen_batch(size, real, rows, gen, prompts=turn % 2 == 0)
        else:
            batch = uniform_batch(size, real, rows, gen, on_device=turn % 2 == 0)
        longest = max(longest, hold(parents_SK, batch, rows, depth, turn % 3 == 2, gen))
    assert longest >= min(depth, 2)  # paths of a single token would prove little


def test_of_two_paths_of_the_same_length_the_first_row_wins() -> None:
    parents_SK = torch.tensor([[-1, -1, 0, 1, PADDING]])
    requests = Requests(1, 1, torch.zeros(1, dtype=torch.long, device=DEVICE))
    trees, out = TreeBuffers.make(1, 6, DEVICE), AcceptBuffers.make(1, 6, 2, DEVICE)
    length_B, prefill_S = torch.tensor([9], device=DEVICE), torch.zeros(1, device=DEVICE, dtype=torch.int32)
    begin(parents_SK.to(DEVICE), requests, length_B, 2, trees, torch.zeros(6, device=DEVICE, dtype=torch.long))
    ids_T, chosen_T = torch.tensor([0, 4, 4, 5, 5, 5], device=DEVICE), torch.tensor([4, 5, 5, 7, 8, 9], device=DEVICE)
    accept(trees, requests, ids_T, chosen_T, length_B, prefill_S, out, torch.zeros(5, dtype=torch.long, device=DEVICE))
    assert out.rows_BD.tolist() == [[1, 3]] and out.sampled_BR.tolist() == [[4, 5, 7, 0, 0, 0]]
