"""The noise that vLLM's sampler draws by: ours is the same, drafts that go by it are one tree by kernels and by the core's own
operations, and another noise is found at start."""

import logging
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from batches import DEVICE
from drafters import VOCAB
from eagle3_vllm import compat, noise
from eagle3_vllm.compat import Sampler
from eagle3_vllm.kernels.noise import SharedNoise, gumbel_in_triton
from eagle3_vllm.settings import Settings
from small_drafts import SLOTS, drawn, small_drafter, start, tree_drafter
from vllm.triton_utils import tl, triton
from vllm.v1.worker.gpu.sample.gumbel import _log1p_neg_stable, murmur3_uniform32, murmur3_uniform64

from eagle3_serving.tree import gumbel
from eagle3_serving.tree.calibrate import Calibration

SEEDS = torch.tensor([0, 1, -7, (1 << 40) + 3, -(1 << 63), (1 << 63) - 1], device=DEVICE)
POSITIONS = torch.tensor([0, 5, 1234, 77, 131071, 2], device=DEVICE)
TOKENS = 8192


@triton.jit
def _theirs(out, seeds_ptr, positions_ptr, WIDE: tl.constexpr, TOKENS: tl.constexpr):  # type: ignore[no-untyped-def]
    """As `gumbel_noised_argmax` has it."""
    row, token = tl.program_id(0), tl.arange(0, TOKENS)
    seed, position = tl.load(seeds_ptr + row), tl.load(positions_ptr + row)
    if WIDE:
        noise = -tl.log(-tl.log(murmur3_uniform64(seed, position, token)))
    else:
        noise = -tl.log(-_log1p_neg_stable(murmur3_uniform32(seed, position, token)))
    tl.store(out + row * TOKENS + token, noise)


@pytest.mark.parametrize("wide", [False, True])
def test_it_is_vllms(wide: bool) -> None:
    theirs_XV = torch.zeros(len(SEEDS), TOKENS, dtype=torch.float64, device=DEVICE)
    _theirs[(len(SEEDS),)](theirs_XV, SEEDS, POSITIONS, WIDE=wide, TOKENS=TOKENS)
    drawn_by = theirs_XV > -1.5  # every token that may win; below, fp32 keeps less of it
    assert drawn_by.float().mean() > 0.98 and theirs_XV.max() > 8
    for ours_XV in (
        gumbel(SEEDS, POSITIONS, torch.arange(TOKENS, device=DEVICE), wide),
        gumbel_in_triton(SEEDS, POSITIONS, TOKENS, wide),
    ):
        assert ours_XV.isfinite().all()
        off_XV = (ours_XV.double() - theirs_XV).abs()
        assert off_XV[drawn_by].max() < 2e-5 and off_XV.max() < 1e-3


def test_ids_may_be_any() -> None:
    ids_V = torch.randperm(TOKENS, generator=torch.Generator().manual_seed(0))[:100].to(DEVICE)
    all_XV = gumbel(SEEDS, POSITIONS, torch.arange(TOKENS, device=DEVICE), False)
    assert torch.equal(gumbel(SEEDS, POSITIONS, ids_V, False), all_XV[:, ids_V])


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize(
    "mapped, calibrated, changes",
    [
        (True, False, {}),
        (False, True, {}),
        (True, True, {"mask_token_id": 7, "causal_head": True}),
        (False, False, {"mask_token_id": 7}),
    ],
    ids=["mapped", "whole, calibrated", "causal head", "masks"],
)
def test_kernels_and_the_core_draft_the_same_trees(
    monkeypatch: pytest.MonkeyPatch, mapped: bool, calibrated: bool, changes: dict[str, Any], wide: bool
) -> None:
    calibration = Calibration(bias=(0.3, -0.2), slope=(0.9, 1.1), rank=(0.0, -0.4)) if calibrated else None
    drafter = small_drafter(mapped, **changes)
    assert len(drafter.vocabulary.target_ids) == VOCAB or mapped
    sides = [tree_drafter(monkeypatch, drafter, DEVICE, by_kernels, calibration) for by_kernels in (False, True)]
    slots_B = torch.tensor([3, 0, 2, -1, 1], device=DEVICE)
    temperature_S = torch.tensor([0.0, 1.0, 0.6, 1.7, 0.0], device=DEVICE)
    assert len(temperature_S) == SLOTS
    seeds_S = torch.tensor([5, -3, 1 << 50, 8, 0], device=DEVICE)
    there_B, warm_B = slots_B >= 0, (slots_B >= 0) & (temperature_S[slots_B] > 0)
    shared = SharedNoise(temperature_S, seeds_S, wide)
    core, kernels = ([x.clone() for x in drawn(side, start(slots_B, shared))] for side in sides)
    plain = [x.clone() for x in drawn(sides[1], start(slots_B, None))]
    for by_core, by_kernels, without in zip(core, kernels, plain, strict=True):
        assert torch.equal(by_core[there_B], by_kernels[there_B])
        assert torch.equal(by_kernels[~warm_B], without[~warm_B])
    assert (kernels[0] != plain[0]).any(1)[warm_B].all()
    others = drawn(sides[1], start(slots_B, SharedNoise(temperature_S, seeds_S + 1, wide)))[0]
    assert (kernels[0] != others).any(1)[warm_B].all()


def sampler_of(kind: type = Sampler, wide: bool = False) -> Any:
    made = kind.__new__(kind)
    made.use_fp64_gumbel, made.use_flashinfer, made.use_xpu_sampler = wide, True, True
    return made


def shared_with(sampler: Any, proposals: Any = "coupled") -> Any:
    """The trees whose drafts may go by its noise."""
    settings = Settings(proposals=proposals)
    trees: Any = SimpleNamespace(settings=settings, device=torch.device(DEVICE), by_kernels=True, wide_noise=None)
    noise.share_noise(sampler, trees)
    return trees


@pytest.mark.parametrize("wide", [False, True])
def test_known_noise_is_shared_and_the_samplers_only_one(wide: bool, caplog: Any) -> None:
    sampler = sampler_of(wide=wide)
    assert shared_with(sampler).wide_noise is wide
    assert not sampler.use_flashinfer and not sampler.use_xpu_sampler and not caplog.messages


def test_who_wants_the_likeliest_tokens_gets_them_without_a_word(caplog: Any) -> None:
    sampler = sampler_of()
    assert shared_with(sampler, "top").wide_noise is None
    assert sampler.use_flashinfer and sampler.use_xpu_sampler and not caplog.messages


def elsewhere(*given: Any, **more: Any) -> Any:
    """Noise of the next position."""
    logits, rows, temperature, seeds, positions = given
    return real(logits, rows, temperature, seeds, positions + 1, **more)


def without_width(logits: Any, expanded_idx_mapping: Any, temperature: Any, seed: Any, pos: Any) -> Any:
    """A function that takes less."""


class Another(Sampler):  # type: ignore[misc]
    """A sampler of somebody else's."""


real = compat.gumbel_sample()


@pytest.mark.parametrize(
    "function, kind, told",
    [
        (elsewhere, Sampler, "gumbel_sample takes (given, more)"),
        (without_width, Sampler, "gumbel_sample takes no use_fp64"),
        (None, Sampler, "draws by another noise"),
        (real, Another, "Another is not the sampler that is known"),
    ],
    ids=["other parameters", "fewer parameters", "other noise", "other sampler"],
)
def test_other_noise_is_found_and_said(
    monkeypatch: pytest.MonkeyPatch, caplog: Any, function: Any, kind: type, told: str
) -> None:
    if function is None:
        monkeypatch.setattr(compat, "noise_problems", list)
        function = elsewhere
    monkeypatch.setattr(compat, "gumbel_sample", lambda: function)
    monkeypatch.setattr(noise.logger, "propagate", True)
    sampler = sampler_of(kind)
    with caplog.at_level(logging.WARNING):
        assert shared_with(sampler).wide_noise is None
    assert sampler.use_flashinfer  # as vLLM would have it
    (line,) = caplog.messages
    assert line.startswith("eagle3: the likeliest tokens are drafted, not by the sampler's noise: ") and told in line


def test_a_vllm_that_fails_at_it_drafts_as_before(monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("no such\nkernel")

    monkeypatch.setattr(compat, "noise_problems", list)
    monkeypatch.setattr(compat, "gumbel_sample", lambda: broken)
    monkeypatch.setattr(noise.logger, "propagate", True)
    with caplog.at_level(logging.WARNING):
        assert shared_with(sampler_of()).wide_noise is None
    assert "no such" in caplog.messages[0]
