"""What a draft step is held to: the target's token distribution, and for comparison EAGLE-1/2's feature.

Shape letters: N rows that count, V draft vocabulary, H hidden.
"""

from torch import Tensor
from torch.nn import functional as F

from eagle3_serving.train.criterion import Objective


def token_loss(logits_NV: Tensor, labels_NV: Tensor, objective: Objective) -> Tensor:
    """Mean over rows. `labels_NV` is the target's distribution p over the draft vocabulary, q the drafter's.

    A draw from q is accepted with chance a = sum min(p, q): `total-variation` is 1 - a, `acceptance` is -log a.
    """
    if objective == "cross-entropy":
        return F.cross_entropy(logits_NV, labels_NV)
    accepted_N = logits_NV.float().softmax(-1).minimum(labels_NV.float()).sum(-1)
    if objective == "total-variation":
        return 1 - accepted_N.mean()
    return -accepted_N.clamp(min=1e-6).log().mean()


def feature_loss(hidden_NH: Tensor, state_NH: Tensor) -> Tensor:
    """Smooth L1 between the drafter's state and the target's, mean over rows and dimensions."""
    return F.smooth_l1_loss(hidden_NH.float(), state_NH.float())


def target_state(final: Tensor, norm_weight_H: Tensor) -> Tensor:
    """The target's final state without its norm's weight, rms 1: what the drafter's own state is to become."""
    state = final / norm_weight_H
    return state * state.square().mean(-1, keepdim=True).clamp(min=1e-12).rsqrt()
