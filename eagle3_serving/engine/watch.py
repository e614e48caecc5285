"""What a verify pass of the embedded engine can show to whoever watches it; nothing is computed for it that the step does not need.

Shape letters: B requests, R rows of the verify pass (root first), V vocabulary.
"""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from eagle3_serving.tree import Acceptance, Draft, DraftTree


class Verified(NamedTuple):
    """One verify pass: the pool that was drafted, the nodes chosen of it (target ids), the target's logits `logits_BRV`
    after every row, and the rows accepted."""

    draft: Draft
    tree: DraftTree
    logits_BRV: Tensor
    accepted: Acceptance


Watch = Callable[[Verified], None]
