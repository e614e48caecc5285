"""Prefix and tree apart and merged are one attention under the dense mask."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from eagle3_serving.attention import AttentionState, attend, merge, prefix_attention, tree_attention
from eagle3_serving.tree import PADDING, dense_mask, tree_layout, with_root

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
TREES = torch.tensor([[-1, 0, -1, 1, 1, 2], [-1, -1, 0, 0, PADDING, PADDING], [-1, 0, 1, 2, 3, 4]])


def inputs(device: str, prefix: int) -> tuple[torch.Tensor, ...]:
    random = torch.Generator().manual_seed(prefix)
    rows = TREES.shape[1] + 1
    q_BRAD = torch.randn(3, rows, 6, 16, generator=random)
    k_BSKD, v_BSKD = (torch.randn(3, prefix + rows, 2, 16, generator=random) for _ in range(2))
    return q_BRAD.to(device), k_BSKD.to(device), v_BSKD.to(device)


@pytest.mark.parametrize("device", DEVICES)
def test_attend_is_sdpa_with_its_sum(device: str) -> None:
    q_BRAD, k_BSKD, v_BSKD = inputs(device, 9)
    seen_BRS = torch.rand(3, 7, 16, generator=torch.Generator().manual_seed(0)).to(device) > 0.5
    seen_BRS[..., 0] = True
    state = attend(q_BRAD, k_BSKD, v_BSKD, seen_BRS)
    q, k, v = (x.transpose(1, 2) for x in (q_BRAD, k_BSKD, v_BSKD))
    want = scaled_dot_product_attention(q, k, v, seen_BRS[:, None], enable_gqa=True).transpose(1, 2)
    assert torch.allclose(state.out_BRAD, want, atol=1e-5)
    scores = q @ k.repeat_interleave(3, dim=1).transpose(-1, -2) / 4
    lse = scores.masked_fill(~seen_BRS[:, None], -torch.inf).logsumexp(-1).transpose(1, 2)
    assert torch.allclose(state.lse_BRA, lse, atol=1e-5)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("prefix", [0, 1, 40])
@pytest.mark.parametrize("ragged", [False, True])
def test_split_equals_the_dense_mask(device: str, prefix: int, ragged: bool) -> None:
    q_BRAD, k_BSKD, v_BSKD = inputs(device, prefix)
    layout = tree_layout(with_root(TREES.to(device)))
    committed_B = torch.tensor([prefix, prefix // 2, prefix] if ragged else [prefix] * 3, device=device)
    mask_BRS = dense_mask(layout, torch.full_like(committed_B, prefix), k_BSKD.shape[1])
    mask_BRS[..., :prefix] &= (torch.arange(prefix, device=device) < committed_B[:, None])[:, None]
    want = attend(q_BRAD, k_BSKD, v_BSKD, mask_BRS)
    pk_BKSD, pv_BKSD = (x[:, :prefix].transpose(1, 2) for x in (k_BSKD, v_BSKD))
    found = tree_attention(
        q_BRAD,
        k_BSKD[:, prefix:],
        v_BSKD[:, prefix:],
        layout.ancestors_BNN,
        lambda q: prefix_attention(q, pk_BKSD, pv_BKSD, committed_B=committed_B if ragged else None),
    )
    assert torch.allclose(found.out_BRAD, want.out_BRAD, atol=1e-5)
    assert torch.allclose(found.lse_BRA, want.lse_BRA, atol=1e-5)


def test_a_part_without_keys_changes_nothing() -> None:
    q_BRAD, k_BSKD, v_BSKD = inputs("cpu", 5)
    state = attend(q_BRAD, k_BSKD, v_BSKD)
    nothing = AttentionState(torch.zeros_like(state.out_BRAD), torch.full_like(state.lse_BRA, -torch.inf))
    for both in (merge(state, nothing), merge(nothing, state)):
        assert torch.equal(both.out_BRAD, state.out_BRAD)
        assert torch.equal(both.lse_BRA, state.lse_BRA)
    assert torch.equal(merge(nothing, nothing).out_BRAD, nothing.out_BRAD)


def test_low_precision_stays_near_fp32() -> None:
    q_BRAD, k_BSKD, v_BSKD = (x.bfloat16() for x in inputs("cpu", 40))
    layout = tree_layout(with_root(TREES))
    mask_BRS = dense_mask(layout, torch.full((3,), 40), k_BSKD.shape[1])
    want = attend(*(x.float() for x in (q_BRAD, k_BSKD, v_BSKD)), mask_BRS)
    prefix = [x[:, :40].transpose(1, 2) for x in (k_BSKD, v_BSKD)]
    found = tree_attention(
        q_BRAD, k_BSKD[:, 40:], v_BSKD[:, 40:], layout.ancestors_BNN, lambda q: prefix_attention(q, *prefix)
    )
    error = (found.out_BRAD.float() - want.out_BRAD).norm() / want.out_BRAD.norm()
    assert error < 1e-2
