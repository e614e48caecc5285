"""The drafter's cached, tree-masked steps equal running every path alone from the start, without a cache."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny import VOCAB, tiny_drafter, tiny_target
from torch import Tensor
from torch.nn import functional as F

from eagle3_serving.drafter import Attend, Drafter
from eagle3_serving.engine import DecodeOptions, DraftSession, EmbeddedEngine, Sampling
from eagle3_serving.engine.rows import plan_rows
from eagle3_serving.tree import Candidates, select, top_children, tree_layout


def causal(window: int | None) -> Attend:
    def attend(layer: int, q_BLAD: Tensor, k_BLKD: Tensor, v_BLKD: Tensor, /) -> Tensor:
        groups, rows = q_BLAD.shape[2] // k_BLKD.shape[2], q_BLAD.shape[1]
        k, v = (x.repeat_interleave(groups, dim=2).transpose(1, 2) for x in (k_BLKD, v_BLKD))
        seen = torch.ones(rows, rows, dtype=torch.bool).tril().triu(1 - (window or rows))
        return F.scaled_dot_product_attention(q_BLAD.transpose(1, 2), k, v, attn_mask=seen).transpose(1, 2)

    return attend


def path_log_prob(drafter: Drafter, aux_BLF: Tensor, next_BL: Tensor, path: list[int]) -> float:
    """Log-probability of a path, every draft step recomputed over the whole sequence."""
    hidden, tokens, total = drafter.fuse(aux_BLF), next_BL, 0.0
    for token in path:
        positions = torch.arange(tokens.shape[1])[None]
        step = drafter.step(tokens, hidden, positions, causal(drafter.config.sliding_window))
        total += float(drafter.logits(step.hidden_BLH)[0, -1].log_softmax(-1)[token])
        hidden = torch.cat([hidden, step.feedback_BLH[:, -1:]], dim=1)
        tokens = torch.cat([tokens, torch.tensor([[token]])], dim=1)
    return total


def draft_of(session: DraftSession, batch: int, depth: int, top_k: int) -> Candidates:
    return session.propose(
        batch, top_k, depth, lambda x, _: top_children(x, top_k), lambda _, __, frontier: frontier.nodes_BK.shape[1]
    ).candidates


@pytest.mark.parametrize("window", [None, 5])
def test_tree_scores_equal_path_by_path_recomputation_in_a_ragged_batch(window: int | None) -> None:
    drafter = tiny_drafter(0)
    drafter.config = replace(drafter.config, sliding_window=window)
    draws = torch.Generator().manual_seed(0)
    lengths = (11, 4, 7)
    aux = [torch.randn(n, 48, generator=draws) for n in lengths]
    after = [torch.randint(VOCAB, (n,), generator=draws) for n in lengths]
    session = DraftSession(drafter, 3, 64)
    # in two parts, and with a draft in between that must leave nothing behind
    for slot, rows in enumerate((6, 4, 1)):
        session.enqueue(slot, aux[slot][:rows], after[slot][:rows])
    session.absorb(3)
    draft_of(session, 3, depth=4, top_k=3)
    session.enqueue(0, aux[0][6:], after[0][6:])
    session.enqueue(2, aux[2][1:5], after[2][1:5])
    session.enqueue(2, aux[2][5:], after[2][5:])
    session.absorb(3)
    tree = select(draft_of(session, 3, depth=4, top_k=3), 30)
    layout = tree_layout(tree.parents_BN)
    assert int(layout.depth_BN.max()) == 3
    for slot in range(3):
        for node in range(tree.tokens_BN.shape[1]):
            path = layout.ancestors_BNN[slot, node].nonzero().flatten()
            want = path_log_prob(drafter, aux[slot][None], after[slot][None], tree.tokens_BN[slot, path].tolist())
            assert abs(float(tree.scores_BN[slot, node]) - want) < 1e-4


def follow(drafter: Drafter, hidden_DH: Tensor, path: list[int]) -> float:
    """Log-probability of a path whose depths one pass gave the states of."""
    state_H, total = hidden_DH[0], 0.0
    for depth, token in enumerate(path):
        if depth and drafter.causal is not None:
            state_H = drafter.causal(drafter.embed_tokens.weight[path[depth - 1]], state_H, hidden_DH[depth])
        elif depth:
            state_H = hidden_DH[depth]
        total += float(drafter.logits(state_H).log_softmax(-1)[token])
    return total


@pytest.mark.parametrize(
    ("layers", "window", "head"), [(1, None, False), (2, None, False), (2, 5, False), (1, None, True), (2, 5, True)]
)
def test_a_parallel_draft_is_one_pass_over_masks(layers: int, window: int | None, head: bool) -> None:
    """In a ragged batch, taken in in two parts; every path of the tree scores what its tokens do at their depths, after one another
    where there is a causal head."""
    drafter = tiny_drafter(0, layers=layers, mask_token_id=3, causal_head=head)
    drafter.config = replace(drafter.config, sliding_window=window)
    draws = torch.Generator().manual_seed(0)
    lengths = (11, 4, 7)
    aux = [torch.randn(n, 48, generator=draws) for n in lengths]
    after = [torch.randint(VOCAB, (n,), generator=draws) for n in lengths]
    session = DraftSession(drafter, 3, 64, depth=4)
    for slot, rows in enumerate((6, 4, 1)):
        session.enqueue(slot, aux[slot][:rows], after[slot][:rows])
    assert session.absorb(3) == 11
    draft_of(session, 3, depth=4, top_k=3)
    session.enqueue(0, aux[0][6:], after[0][6:])
    session.enqueue(2, aux[2][1:], after[2][1:])
    session.absorb(3)
    candidates = draft_of(session, 3, depth=4, top_k=3)
    tree = select(candidates, 30)
    layout = tree_layout(tree.parents_BN)
    assert int(layout.depth_BN.max()) == 3
    masked_LF, masks_L = drafter.masks(3)
    for slot in range(3):
        aux_BLF = torch.cat([aux[slot], masked_LF])[None]
        tokens = torch.cat([after[slot], masks_L])[None]
        positions = torch.arange(tokens.shape[1])[None]
        step = drafter.step(tokens, drafter.fuse(aux_BLF), positions, causal(window))
        for node in range(tree.tokens_BN.shape[1]):
            path = tree.tokens_BN[slot, layout.ancestors_BNN[slot, node]].tolist()
            want = follow(drafter, step.hidden_BLH[0, -4:], path)
            assert abs(float(tree.scores_BN[slot, node]) - want) < 1e-4


@pytest.mark.parametrize(
    "options", [{"mode": "chain", "k": 4}, {"mode": "tree", "nodes": 12, "depth": 4, "top_k": 3}], ids=str
)
@pytest.mark.parametrize("sampled", [False, True])
@pytest.mark.parametrize("head", [False, True], ids=["masks", "causal head"])
def test_a_parallel_drafter_changes_no_token(options: dict[str, Any], sampled: bool, head: bool) -> None:
    engine = EmbeddedEngine(tiny_target(0), tiny_drafter(0, layers=2, mask_token_id=3, causal_head=head))
    prompts = [[1, 2, 3], [4, 5, 6, 7, 8, 9], [2], [7, 7]]
    plain = engine.generate_many(prompts, DecodeOptions(24, "plain"), 2)
    drafted = engine.generate_many(prompts, DecodeOptions(24, **options), 2)
    assert [one.token_ids for one in drafted] == [one.token_ids for one in plain]
    assert max(one.accepted_length for one in drafted) > 1.05
    if sampled:  # each law of its own; that drawn proposals are lossless is held elsewhere, that they run here
        drawn = DecodeOptions(24, **options, proposals="drawn", sampling=Sampling(0.8))
        assert all(len(one.token_ids) == 24 for one in engine.generate_many(prompts, drawn, 2))


def test_a_moved_request_drafts_as_before() -> None:
    drafter = tiny_drafter(0)
    draws = torch.Generator().manual_seed(1)
    session = DraftSession(drafter, 3, 64)
    for slot in range(3):
        session.enqueue(
            slot, torch.randn(5 + slot, 48, generator=draws), torch.randint(VOCAB, (5 + slot,), generator=draws)
        )
    session.absorb(3)
    before = draft_of(session, 3, depth=3, top_k=2)
    session.move_slot(2, 0)
    after = draft_of(session, 2, depth=3, top_k=2)
    for old, new in zip(before, after, strict=True):
        assert torch.equal(old[1], new[1])
        assert torch.allclose(old[2].double(), new[0].double(), atol=1e-5)


def test_aux_features_are_the_hidden_states_transformers_names() -> None:
    target = tiny_target(0)
    target.watch((0, 2, 3))
    tokens = torch.randint(VOCAB, (1, 7), generator=torch.Generator().manual_seed(1))
    output = target.forward(tokens[0], torch.arange(7), target.new_pool(1, 7), plan_rows(0, [0], [7], tokens.device))
    with torch.no_grad():
        states = target.model(tokens, output_hidden_states=True).hidden_states
    assert output.aux_TF is not None
    # transformers' last state is after the final norm, boundary 3 before it
    assert torch.allclose(output.aux_TF[None, :, :32], torch.cat([states[0], states[2]], dim=-1), atol=1e-6)
    assert torch.allclose(target.body.norm(output.aux_TF[None, :, 32:]), states[3], atol=1e-6)
