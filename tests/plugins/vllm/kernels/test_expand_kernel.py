"""`expand` against the core's own draft: pool, frontiers, masks, and what the next step takes in."""

import math

import pytest
import torch
from batches import DEVICE
from eagle3_vllm.kernels.calibrate import CalibrationTables
from eagle3_vllm.kernels.expand import expand
from eagle3_vllm.kernels.noise import SharedNoise
from eagle3_vllm.kernels.pool import DraftBuffers, DraftShape
from torch import Tensor

from eagle3_serving.tree import Children, coupled_children, grow_draft, gumbel, top_children
from eagle3_serving.tree.calibrate import Calibration

CALIBRATION = Calibration(bias=(0.3, -0.2, 0.1), slope=(0.9, 1.1, 0.7), rank=(0.0, -0.4, -0.6))
# batch, shape, calibrated: every size of vocabulary, and a frontier that grows over several depths (3 tokens, top-k 10)
DRAFTS = (
    (1, DraftShape(1, 8, 97), False),
    (3, DraftShape(4, 3, 97), False),
    (3, DraftShape(4, 3, 97), True),
    (5, DraftShape(4, 2, 1000), True),
    (1, DraftShape(10, 8, 97), True),
    (3, DraftShape(10, 4, 3), False),
    (1, DraftShape(10, 3, 6144), False),
    (1, DraftShape(10, 1, 32000), True),
    (3, DraftShape(10, 1, 1000), False),
    (1, DraftShape(17, 2, 2048), True),
)


def stable_children(logits_BKV: Tensor, top_k: int) -> Children:
    """`top_children` under the kernel's law: of equal logits the lower id first."""
    order_BKC = logits_BKV.float().sort(dim=-1, descending=True, stable=True).indices[..., :top_k]
    return Children(order_BKC, logits_BKV.float().log_softmax(-1).gather(-1, order_BKC))


def random_logits(batch: int, shape: DraftShape, gen: torch.Generator) -> list[Tensor]:
    return [torch.randn(batch, width, shape.vocab, generator=gen) * 3 for width in shape.widths]


@pytest.mark.parametrize("wide", [None, False, True], ids=["no noise", "32 bits", "53 bits"])
@pytest.mark.parametrize("batch, shape, calibrated", DRAFTS, ids=str)
def test_a_whole_draft_is_the_core_s(batch: int, shape: DraftShape, calibrated: bool, wide: bool | None) -> None:
    """Calibrated ones are mapped to the target's ids. With noise: requests in any slots, the second greedy, the last padding."""
    gen = torch.Generator().manual_seed(shape.vocab)
    logits = random_logits(batch, shape, gen)
    prefix_B = torch.randint(0, 50, (batch,), generator=gen).int()
    target_ids_V = torch.randperm(3 * shape.vocab, generator=gen)[: shape.vocab] if calibrated else None
    draft = DraftBuffers.make(batch, shape, DEVICE)
    tables = CalibrationTables.of(CALIBRATION, DEVICE) if calibrated else None
    slots_B = torch.randperm(batch + 2, generator=gen)[:batch]
    temperature_B = torch.tensor([0.9, 0.0, 1.4, 0.3, 1.0])[:batch]
    seed_B = torch.randint(-(1 << 62), 1 << 62, (batch,), generator=gen)
    temperature_S, seeds_S = torch.ones(batch + 2), torch.arange(batch + 2)
    temperature_S[slots_B], seeds_S[slots_B] = temperature_B, seed_B
    if batch > 1:
        slots_B[-1], temperature_B[-1] = -1, 0.0
    noise = None if wide is None else SharedNoise(temperature_S.to(DEVICE), seeds_S.to(DEVICE), wide)
    ids_V = torch.arange(shape.vocab) if target_ids_V is None else target_ids_V
    for depth in range(1, shape.depth + 1):
        # rows further apart than they are long, as those of a padded vocabulary are
        logits_XV = torch.nn.functional.pad(logits[depth - 1].flatten(0, 1), (0, 5)).to(DEVICE)[:, : shape.vocab]
        expand(
            draft,
            depth,
            logits_XV,
            prefix_B.to(DEVICE),
            None if target_ids_V is None else target_ids_V.to(DEVICE),
            tables,
            noise,
            slots_B.to(DEVICE),
        )

    def grow(logits_BKV: Tensor, depth: int) -> Children:
        if wide is None:
            found = top_children(logits_BKV, shape.top_k)
        else:
            gumbel_BV = gumbel(seed_B, prefix_B.long() + depth - 1, ids_V, wide)
            found = coupled_children(logits_BKV, shape.top_k, temperature_B, gumbel_BV)
        return CALIBRATION.apply(found, depth) if calibrated else found

    def draft_rows(tokens_BK: Tensor, state_BK1: Tensor, depth: int, mask_BKT: Tensor) -> tuple[Tensor, Tensor]:
        """Holds what the core's step is given to what ours would be."""
        step = draft.steps[depth]
        wanted_BK = tokens_BK if target_ids_V is None else target_ids_V[tokens_BK]
        assert torch.equal(step.tokens_BW.cpu(), wanted_BK)
        assert torch.equal(step.source_BW.cpu(), state_BK1[..., 0].long())
        assert torch.equal(step.mask_BWS.cpu(), mask_BKT)
        assert torch.equal(step.positions_BW.cpu(), (prefix_B[:, None].long() + depth - 1).expand_as(tokens_BK))
        return logits[depth], torch.arange(tokens_BK.numel(), dtype=torch.float64).view(batch, -1, 1)

    # a state is the number of its row
    state_B1 = torch.arange(batch, dtype=torch.float64)[:, None]
    reference = grow_draft(
        logits[0][:, 0], state_B1, shape.top_k, shape.depth, grow, lambda *seen: seen[2].nodes_BK.shape[1], draft_rows
    )
    assert torch.equal(draft.tokens_BP.cpu(), reference.candidates.tokens_BC)
    assert torch.equal(draft.parents_BP.cpu(), reference.candidates.parents_BC)
    torch.testing.assert_close(draft.scores_BP.cpu(), reference.candidates.scores_BC, atol=2e-5, rtol=1e-5)
    scores_BP = draft.scores_BP.cpu()
    for step in draft.steps[1:]:
        assert torch.equal(step.scores_BW.cpu(), scores_BP.gather(1, step.nodes_BW.cpu()))
    # never above the parent's: the selection stays a tree
    above_BP = torch.where(draft.parents_BP.cpu() < 0, 0.0, scores_BP.gather(1, draft.parents_BP.cpu().clamp(min=0)))
    assert (scores_BP <= above_BP).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_logits_are_what_they_are_in_fp32(dtype: torch.dtype) -> None:
    shape = DraftShape(4, 2, 1000)
    logits = [x.to(dtype) for x in random_logits(2, shape, torch.Generator().manual_seed(0))]
    prefix_B = torch.zeros(2, dtype=torch.int32, device=DEVICE)
    half, whole = DraftBuffers.make(2, shape, DEVICE), DraftBuffers.make(5, shape, DEVICE).first(2)
    for depth, logits_BWV in enumerate(logits, 1):
        expand(half, depth, logits_BWV.flatten(0, 1).to(DEVICE), prefix_B)
        expand(whole, depth, logits_BWV.flatten(0, 1).float().to(DEVICE), prefix_B)
    assert all(torch.equal(a, b) for a, b in zip(half.candidates, whole.candidates, strict=True))
    assert half.scores_BP.lt(0).all()


@pytest.mark.parametrize("vocab", [97, 2500])
def test_of_equals_the_lower_id_and_the_earlier_candidate_come_first(vocab: int) -> None:
    gen = torch.Generator().manual_seed(vocab)
    shape = DraftShape(10, 2, vocab)
    logits = [torch.randint(0, 3, (3, width, vocab), generator=gen).float() for width in shape.widths]
    logits[0][0] = 0.0  # nothing but equals
    logits[1][1, :, ::2] = -0.0
    draft = DraftBuffers.make(3, shape, DEVICE)
    for depth, logits_BWV in enumerate(logits, 1):
        expand(draft, depth, logits_BWV.flatten(0, 1).to(DEVICE), torch.zeros(3, dtype=torch.int32, device=DEVICE))
    first, second = draft.tokens_BP.cpu().split([10, 100], dim=1)
    assert torch.equal(first, stable_children(logits[0], 10).tokens_BKC.flatten(1))
    assert torch.equal(second, stable_children(logits[1], 10).tokens_BKC.flatten(1))
    order_BP = draft.scores_BP[:, :10].cpu().sort(dim=1, descending=True, stable=True).indices
    assert torch.equal(draft.steps[1].nodes_BW.cpu(), order_BP)


@pytest.mark.parametrize("noisy", [False, True], ids=["no noise", "noise"])
def test_a_broken_row_of_logits_has_children_without_a_chance(noisy: bool) -> None:
    logits_XV = torch.randn(6, 3000, generator=torch.Generator().manual_seed(0))
    logits_XV[0, 2500] = math.nan
    logits_XV[1, 7] = math.inf
    logits_XV[2] = -math.inf
    logits_XV[3, 5:] = -math.inf  # five tokens are possible
    logits_XV[4] = math.nan
    draft = DraftBuffers.make(6, DraftShape(10, 2, 3000), DEVICE)
    tables = CalibrationTables.of(CALIBRATION, DEVICE)
    slots_B = torch.arange(6, device=DEVICE)
    noise = SharedNoise(torch.ones(6, device=DEVICE), slots_B, False) if noisy else None
    for calibration in (None, tables):
        prefix_B = torch.zeros(6, dtype=torch.int32, device=DEVICE)
        expand(draft, 1, logits_XV.to(DEVICE), prefix_B, None, calibration, noise, slots_B)
        wanted_BKC = top_children(logits_XV[:, None], 10).log_chance_BKC
        impossible_BP = (wanted_BKC == -math.inf).flatten(1)
        assert impossible_BP[[0, 1, 2, 4]].all() and impossible_BP[3].sum() == 5 and not impossible_BP[5].any()
        assert torch.equal(draft.scores_BP[:, :10].cpu() == -math.inf, impossible_BP)
        assert draft.tokens_BP.ge(0).all() and draft.tokens_BP.lt(3000).all()
        assert all(len(set(row)) == 10 for row in draft.tokens_BP[:, :10].tolist())


def test_a_greedy_request_among_others_is_as_without_noise() -> None:
    """Bit for bit, scores too."""
    shape = DraftShape(4, 2, 3000)
    logits = random_logits(3, shape, torch.Generator().manual_seed(0))
    slots_B, prefix_B = torch.tensor([1, 0, -1], device=DEVICE), torch.tensor([4, 5, 6], device=DEVICE)
    noise = SharedNoise(torch.tensor([0.0, 1.0], device=DEVICE), torch.arange(2, device=DEVICE), False)
    mixed, plain = DraftBuffers.make(3, shape, DEVICE), DraftBuffers.make(3, shape, DEVICE)
    for depth, logits_BWV in enumerate(logits, 1):
        expand(mixed, depth, logits_BWV.flatten(0, 1).to(DEVICE), prefix_B, None, None, noise, slots_B)
        expand(plain, depth, logits_BWV.flatten(0, 1).to(DEVICE), prefix_B)
    for mine, theirs in zip(mixed.candidates, plain.candidates, strict=True):
        assert torch.equal(mine[1:], theirs[1:])
    assert not torch.equal(mixed.tokens_BP[0], plain.tokens_BP[0])


def test_chances_near_one_and_none_are_calibrated_as_the_core_s() -> None:
    logits_XV = torch.tensor([[0.0, -9.0, -20.0, -60.0, -200.0], [0.0, 0.0, -1e-3, -100.0, -100.0]])
    draft = DraftBuffers.make(2, DraftShape(5, 1, 5), DEVICE)
    prefix_B = torch.zeros(2, dtype=torch.int32, device=DEVICE)
    expand(draft, 1, logits_XV.to(DEVICE), prefix_B, calibration=CalibrationTables.of(CALIBRATION, DEVICE))
    wanted_BKC = CALIBRATION.apply(top_children(logits_XV[:, None], 5), 1).log_chance_BKC
    torch.testing.assert_close(draft.scores_BP.cpu(), wanted_BKC.flatten(1), atol=1e-5, rtol=1e-5)


def test_what_is_no_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="top-k 0"):
        DraftShape(0, 3, 100)
    with pytest.raises(ValueError, match="at most 45"):
        DraftShape(46, 3, 100)
    draft = DraftBuffers.make(2, DraftShape(4, 2, 97), DEVICE)
    with pytest.raises(ValueError, match="at depth 2"):
        expand(draft, 2, torch.zeros(2, 97, device=DEVICE), torch.zeros(2, device=DEVICE))
