"""`select` against the core's `select` and `likeliest_path`."""

import pytest
import torch
from batches import DEVICE, SLOTS, integer
from eagle3_vllm.kernels.select import select
from torch import Tensor

from eagle3_serving.tree import PADDING, Candidates, likeliest_path
from eagle3_serving.tree import select as core_select

# batch, of them real, candidates, nodes, room of a slot
SIZES = (
    (1, 1, 1, 1, 1),
    (3, 2, 10, 4, 4),
    (5, 5, 45, 60, 64),
    (3, 2, 110, 16, 60),
    (5, 3, 710, 60, 61),
    (2, 1, 1100, 1, 3),
)


def random_pool(batch: int, size: int, coarse: bool, gen: torch.Generator) -> tuple[Candidates, int]:
    """Parents before children, no child above its parent; where `coarse` with many equals, and some without a chance. And
    how deep it is."""
    parents_BC = torch.stack([torch.tensor([integer(c, gen, low=-1) for c in range(size)]) for _ in range(batch)])
    scores_BC, depth_BC = torch.zeros(batch, size), torch.zeros(batch, size, dtype=torch.long)
    step_BC = torch.rand(batch, size, generator=gen)
    if coarse:
        step_BC = (step_BC * 3).floor() / 2
        step_BC[torch.rand(batch, size, generator=gen) < 0.1] = torch.inf
    for b in range(batch):
        for c, parent in enumerate(parents_BC[b].tolist()):
            scores_BC[b, c] = (scores_BC[b, parent] if parent >= 0 else 0.0) - step_BC[b, c]
            depth_BC[b, c] = depth_BC[b, parent] + 1 if parent >= 0 else 1
    return Candidates(torch.randint(0, 500, (batch, size), generator=gen), parents_BC, scores_BC), int(depth_BC.max())


@pytest.mark.parametrize("batch, real, size, nodes, room", SIZES)
@pytest.mark.parametrize("coarse", [False, True])
@pytest.mark.parametrize("plain", [True, False], ids=["plain", "budget-chains-map"])
def test_the_tree_is_the_core_s(
    batch: int, real: int, size: int, nodes: int, room: int, coarse: bool, plain: bool
) -> None:
    gen = torch.Generator().manual_seed(size + nodes)
    pool, depth = random_pool(batch, size, coarse, gen)
    slots_B = torch.cat([torch.randperm(SLOTS, generator=gen)[:real], torch.full((batch - real,), -1)])
    drafting_B = torch.arange(batch) != 1  # the second has a prompt to read
    chains_S = budget_B = target_ids_V = None
    if not plain:
        chains_S = torch.arange(SLOTS) % 2 == 0
        budget_B = torch.randint(0, nodes + 3, (batch,), generator=gen).int()
        target_ids_V = torch.randperm(5000, generator=gen)[:500]
    tokens_BN, parents_SK = torch.full((batch, nodes + 2), 7), torch.full((SLOTS, room), 7)
    sums = torch.arange(5)
    found = [x.to(DEVICE) for x in (tokens_BN, parents_SK, sums)]
    select(
        Candidates(*(x.to(DEVICE) for x in pool)), depth, slots_B.to(DEVICE), drafting_B.to(DEVICE), found[0][:, :nodes],
        found[1], found[2], *(None if x is None else x.to(DEVICE) for x in (target_ids_V, chains_S, budget_B)),
    )  # fmt: skip
    only_B = torch.zeros(batch, dtype=torch.bool) if chains_S is None else chains_S[slots_B]
    reference = core_select(likeliest_path(pool, depth, only_B), nodes, budget_B)
    drafting_B = drafting_B & (slots_B >= 0)
    width = reference.parents_BN.shape[1]
    wanted_BN = torch.zeros(batch, nodes, dtype=torch.long)
    ids_BN = reference.tokens_BN if target_ids_V is None else target_ids_V[reference.tokens_BN]
    wanted_BN[:, :width] = ids_BN.masked_fill((reference.parents_BN == PADDING) | ~drafting_B[:, None], 0)
    tokens_BN[:, :nodes] = wanted_BN
    wanted_parents_BN = reference.parents_BN.masked_fill(~drafting_B[:, None], PADDING)
    for b in range(real):
        parents_SK[slots_B[b]] = PADDING
        parents_SK[slots_B[b], :width] = wanted_parents_BN[b]
    assert torch.equal(found[0].cpu(), tokens_BN) and torch.equal(found[1].cpu(), parents_SK)
    made = int((wanted_parents_BN != PADDING).sum())
    assert found[2].tolist() == [0, 1, 2, 3 + int(drafting_B.sum()), 4 + made]


def test_scores_above_zero_and_both_zeros_keep_their_order() -> None:
    scores_BC = torch.tensor([[3.0, 1e-30, 0.0, -0.0, -1e-30, -5.0, -torch.inf]])
    pool = Candidates(torch.arange(7)[None], torch.full((1, 7), -1), scores_BC)
    for nodes in range(1, 8):
        found = _one(pool, nodes)
        assert found == list(range(min(nodes, 6))) + [0] * max(0, nodes - 6)


def _one(pool: Candidates, nodes: int) -> list[int]:
    def on(x: Tensor) -> Tensor:
        return x.to(DEVICE)

    tokens_BN, parents_SK = on(torch.full((1, nodes), -7)), on(torch.full((1, nodes), -7))
    zero, yes, sums = (
        on(torch.zeros(1, dtype=torch.long)),
        on(torch.ones(1, dtype=torch.bool)),
        on(torch.zeros(5).long()),
    )
    select(Candidates(*map(on, pool)), 1, zero, yes, tokens_BN, parents_SK, sums)
    return tokens_BN[0].tolist()


def test_too_little_room_is_refused() -> None:
    pool, _ = random_pool(1, 5, False, torch.Generator())
    zero, yes = torch.zeros(1, dtype=torch.long), torch.ones(1, dtype=torch.bool)
    with pytest.raises(ValueError, match="4 nodes"):
        select(pool, 2, zero, yes, torch.zeros(1, 4).long(), torch.zeros(2, 3).long(), torch.zeros(5).long())
