"""What a target's attention does to its scores beyond the plain softmax over all that stands before a row.

Shape letters: B requests, R rows, S keys, A query heads, K key-value heads, D head size.
"""

from dataclasses import dataclass

from torch import Tensor

from eagle3_serving.attention import attend
from eagle3_serving.engine.reach import Reach


@dataclass(frozen=True)
class Scores:
    """`reach`: what a row sees (None: all before it); `softcap`: scores are bent to within it (Gemma 2); `sinks_A`: the score of
    one more key a head, which has no value (gpt-oss)."""

    reach: Reach | None = None
    softcap: float | None = None
    sinks_A: Tensor | None = None

    @property
    def plain(self) -> bool:
        """Whether a mask is all that it needs."""
        return self.softcap is None and self.sinks_A is None

    def attend(
        self, q_BRAD: Tensor, k_BSKD: Tensor, v_BSKD: Tensor, seen_BRS: Tensor | None, scale: float | None
    ) -> Tensor:
        """[B, R, A, D] in PyTorch's own arithmetic; `seen_BRS` has the reach in it."""
        state = attend(q_BRAD, k_BSKD, v_BSKD, seen_BRS, scale, self.softcap)
        if self.sinks_A is None:
            return state.out_BRAD
        # a key without value only takes its share of the softmax
        share_BRA = (state.lse_BRA - self.sinks_A.float()).sigmoid()
        return (state.out_BRAD.float() * share_BRA[..., None]).to(q_BRAD.dtype)
