"""The drafter's cached, tree-masked steps equal running every path alone from the start, without a cache."""

import torch
from tiny import VOCAB, tiny_drafter, tiny_target
from torch import Tensor
from torch.nn import functional as F

from eagle3_serving.drafter import Drafter
from eagle3_serving.engine import DraftSession, TreeShape
from eagle3_serving.tree import tree_layout


def causal(layer: int, q_BLAD: Tensor, k_BLKD: Tensor, v_BLKD: Tensor) -> Tensor:
    groups = q_BLAD.shape[2] // k_BLKD.shape[2]
    k, v = (x.repeat_interleave(groups, dim=2).transpose(1, 2) for x in (k_BLKD, v_BLKD))
    return F.scaled_dot_product_attention(q_BLAD.transpose(1, 2), k, v, is_causal=True).transpose(1, 2)


def path_log_prob(drafter: Drafter, aux_BLF: Tensor, next_BL: Tensor, path: list[int]) -> float:
    """Log-probability of a path, every draft step recomputed over the whole sequence."""
    hidden, tokens, total = drafter.fuse(aux_BLF), next_BL, 0.0
    for token in path:
        positions = torch.arange(tokens.shape[1])[None]
        step = drafter.step(tokens, hidden, positions, causal)
        total += float(drafter.logits(step.hidden_BLH)[0, -1].log_softmax(-1)[token])
        hidden = torch.cat([hidden, step.feedback_BLH[:, -1:]], dim=1)
        tokens = torch.cat([tokens, torch.tensor([[token]])], dim=1)
    return total


def test_tree_scores_equal_path_by_path_recomputation() -> None:
    drafter = tiny_drafter(0)
    draws = torch.Generator().manual_seed(0)
    aux_BLF = torch.randn(1, 11, 48, generator=draws)
    next_BL = torch.randint(VOCAB, (1, 11), generator=draws)
    session = DraftSession(drafter, 64)
    # in two parts, and with a draft in between that must leave nothing behind
    session.absorb(aux_BLF[:, :6], next_BL[:, :6])
    session.propose(TreeShape(nodes=10, depth=4, top_k=3))
    session.absorb(aux_BLF[:, 6:], next_BL[:, 6:])
    tree = session.propose(TreeShape(nodes=30, depth=4, top_k=3))
    layout = tree_layout(tree.parents_BN)
    assert int(layout.depth_BN.max()) == 3
    for node in range(tree.tokens_BN.shape[1]):
        path = layout.ancestors_BNN[0, node].nonzero().flatten()
        tokens = tree.tokens_BN[0, path].tolist()
        want = path_log_prob(drafter, aux_BLF, next_BL, tokens)
        assert abs(float(tree.scores_BN[0, node]) - want) < 1e-4


def test_aux_features_are_the_hidden_states_transformers_names() -> None:
    target = tiny_target(0)
    target.watch((0, 2, 3))
    tokens = torch.randint(VOCAB, (1, 7), generator=torch.Generator().manual_seed(1))
    output = target.forward(tokens, torch.arange(7)[None], target.new_cache(7))
    with torch.no_grad():
        states = target.model(tokens, output_hidden_states=True).hidden_states
    assert output.aux_BLF is not None
    # transformers' last state is after the final norm, boundary 3 before it
    assert torch.allclose(output.aux_BLF[..., :32], torch.cat([states[0], states[2]], dim=-1), atol=1e-6)
    assert torch.allclose(target.body.norm(output.aux_BLF[..., 32:]), states[3], atol=1e-6)
