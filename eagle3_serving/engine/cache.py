"""The drafter's KV cache and attention: committed rows first, then the rows of the tree being drafted.

Shape letters: B requests, L new rows, S rows in use, A query heads, K key-value heads, D head size.
"""

from torch import Tensor
from torch.nn import functional as F

from eagle3_serving.drafter import Attend
from eagle3_serving.engine.kv import KVRows


class DraftCache:
    """`committed` rows stand for verified positions (true features); rows past them belong to the current draft."""

    def __init__(self, layers: int, capacity: int) -> None:
        self.layers = [KVRows(capacity) for _ in range(layers)]
        self.committed = 0

    @property
    def length(self) -> int:
        return self.layers[0].length

    def drop_draft(self) -> None:
        for layer in self.layers:
            layer.length = self.committed

    def attend(self, mask_BLS: Tensor | None) -> Attend:
        """The attention of one draft step, which appends its rows. `mask_BLS` bool: True where a row sees a row in use;
        None: every new row sees all rows."""

        def attend(layer: int, q_BLAD: Tensor, k_BLKD: Tensor, v_BLKD: Tensor) -> Tensor:
            k_BKSD, v_BKSD = self.layers[layer].append(k_BLKD.transpose(1, 2), v_BLKD.transpose(1, 2))
            groups = q_BLAD.shape[2] // k_BLKD.shape[2]
            out_BALD = F.scaled_dot_product_attention(
                q_BLAD.transpose(1, 2),
                k_BKSD.repeat_interleave(groups, dim=1),
                v_BKSD.repeat_interleave(groups, dim=1),
                attn_mask=None if mask_BLS is None else mask_BLS[:, None],
            )
            return out_BALD.transpose(1, 2)

        return attend
