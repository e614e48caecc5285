"""A tree's rows under a target's sliding window, on a CPU.

SGLang's kernel counts a window by rows: row 9 of a tree as if it stood nine places after the root, though it may be the
root's child. In windowed layers each row of a tree is therefore a decoding row, with a table of its own: the slots before the
tree, its ancestors' and its own.

Shape letters: B requests, R rows of a tree, S positions of a request, W places of a table.
"""

from collections.abc import Callable
from copy import copy
from typing import Any

import torch
from torch import Tensor


def tables(before_BS: Tensor, length_B: Tensor, rows_BR: Tensor, seen_BRR: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Slots [B * R, W] that each row sees, its own last, and how many they are [B * R].

    `before_BS` are the slots of the `length_B` positions before the tree, of which the last `most` are kept at the most,
    `rows_BR` those of the tree's rows; row r sees row i where `seen_BRR` is true: itself, and its ancestors, which stand
    before it.
    """
    depth_BR = seen_BRR.sum(2)
    kept_B = length_B.clamp(max=most)
    place_W = torch.arange(int(kept_B.max()) + int(depth_BR.max()), device=rows_BR.device)
    at_BW = (place_W + (length_B - kept_B)[:, None]).clamp(max=before_BS.shape[1] - 1)
    ancestors_BRR = (~seen_BRR).byte().sort(dim=2, stable=True).indices
    path_BRR = rows_BR[:, None].expand_as(ancestors_BRR).gather(2, ancestors_BRR)
    after_BW = (place_W - kept_B[:, None]).clamp(0, rows_BR.shape[1] - 1)
    path_BRW = path_BRR.gather(2, after_BW[:, None].expand(-1, path_BRR.shape[1], -1))
    table_BRW = torch.where((place_W < kept_B[:, None])[:, None], before_BS.gather(1, at_BW)[:, None], path_BRW)
    return table_BRW.flatten(0, 1), (kept_B[:, None] + depth_BR).flatten()


class WindowedTrees:
    """Stands around the `forward_extend` of SGLang's CPU backend; every other pass goes on to it."""

    def __init__(self, extend: Callable[..., Tensor]) -> None:
        self._extend = extend
        self._of: tuple[Any, int] | None = None  # the pass, and the window, that `_decoding` is for
        self._decoding: Any = None

    def around(self) -> Callable[..., Tensor]:
        def forward_extend(
            backend: Any, q: Tensor, k: Tensor, v: Tensor, layer: Any, forward_batch: Any, *args: Any, **kwargs: Any
        ) -> Tensor:
            window = layer.sliding_window_size + 1  # SGLang's number leaves a row's own token out
            _, _, _, mask = backend.extend_metadata
            # a root alone stands where its row does
            alone = forward_batch.batch_size == len(q)
            if window <= 0 or not forward_batch.forward_mode.is_target_verify() or mask is None or alone:
                return self._extend(backend, q, k, v, layer, forward_batch, *args, **kwargs)
            if self._of is None or self._of[0] is not backend.extend_metadata or self._of[1] != window:
                self._decoding = _decoding(backend, layer, forward_batch, window)
                self._of = backend.extend_metadata, window
            attended: Tensor = self._decoding.forward_decode(q, k, v, layer, forward_batch, *args, **kwargs)
            return attended

        return forward_extend


def _decoding(backend: Any, layer: Any, forward_batch: Any, window: int) -> Any:
    """The backend for one pass, told that each row is a request's next token, as it is where a draft's branches are drafted."""
    length_B, count_B, _, mask = backend.extend_metadata
    rows = int(count_B[0])
    slots_BS = backend.req_to_token_pool.req_to_token[forward_batch.req_pool_indices.long()]
    rows_BR = forward_batch.out_cache_loc.view(-1, rows).to(slots_BS.dtype)
    seen_BRR = mask.view(-1, rows, rows)[: len(length_B)]  # of a buffer for more requests
    table, lengths = tables(slots_BS, length_B.long() - rows, rows_BR, seen_BRR, window)
    scratch = copy(backend)
    scratch.forward_metadata = (
        backend._get_attn_logits_buffer(len(lengths), layer.tp_q_head_num, layer.v_head_dim),
        None,
    )
    scratch.draft_decode_metadata = table, lengths, torch.arange(len(lengths))
    return scratch
