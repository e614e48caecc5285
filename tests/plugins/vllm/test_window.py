"""A drafter's window on vLLM: over a CPU's pages, where a backend takes none, and what is said of long texts."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("vllm")

from eagle3_vllm import window
from eagle3_vllm.attention.cpu import CpuPrefix, pages
from eagle3_vllm.compat import AttentionBackendEnum
from eagle3_vllm.window import length_line, window_of

from eagle3_serving.attention import attend
from eagle3_serving.drafter import DrafterConfig

HEADS, KV_HEADS, DIM, PAGE = 4, 2, 16, 8
CONFIG = DrafterConfig(64, 128, 4, 2, 16, 100, 100, 64, (1, 2, 3), max_position_embeddings=4096, sliding_window=512)


@pytest.mark.parametrize("past", [0, 3, (0, 1, 4)], ids=["at once", "later", "each row at its depth"])
@pytest.mark.parametrize("width", [None, 5, 40])
def test_rows_see_a_window_of_their_prefix(width: int | None, past: int | tuple[int, ...]) -> None:
    torch.manual_seed(0)
    cache, table = torch.randn(9, KV_HEADS, PAGE, 2 * DIM), torch.tensor([[7, 2, 5], [1, 8, 3]])
    layer: Any = SimpleNamespace(kv_cache=cache, head_size=DIM, impl=SimpleNamespace(scale=DIM**-0.5))
    prefix = torch.tensor([21, 6])
    q, k, v = (torch.randn(2, rows, heads, DIM) for rows, heads in ((3, HEADS), (4, KV_HEADS), (4, KV_HEADS)))
    mask = (torch.rand(2, 3, 4) < 0.5).logical_or(torch.eye(4)[1:].bool())
    past_R = torch.tensor(past).expand(3)
    by_row = past if isinstance(past, int) else past_R.expand(2, -1)
    said = CpuPrefix(layer, table, prefix, 21, width).attend(q, k, v, mask, by_row)
    keys, values = pages(cache, DIM)
    for b, before in enumerate(prefix.tolist()):
        held_k = keys[table[b]].permute(0, 3, 1, 2).flatten(0, 1)[:before]
        held_v = values[table[b]].permute(0, 2, 1, 3).flatten(0, 1)[:before]
        seen = torch.ones(3, before, dtype=torch.bool)
        if width is not None:
            seen &= torch.arange(before) > before + past_R[:, None] - width
        shown = torch.cat([seen, mask[b]], 1)[None]
        both = torch.cat([held_k, k[b]])[None], torch.cat([held_v, v[b]])[None]
        want = attend(q[b : b + 1], *both, shown, DIM**-0.5).out_BRAD[0]
        assert (said[b] - want).abs().max() < 1e-5


def test_flashinfer_takes_one_window_for_all_and_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def asked(backend: str | None, draft: str | None = None) -> int | None:
        named = [None if name is None else AttentionBackendEnum[name] for name in (backend, draft)]
        config: Any = SimpleNamespace(
            attention_config=SimpleNamespace(backend=named[0]),
            speculative_config=SimpleNamespace(attention_backend=named[1]),
        )
        return window_of(CONFIG, config)

    monkeypatch.setattr(window.logger, "propagate", True)
    assert asked(None) == asked("FLASH_ATTN") == asked("TRITON_ATTN") == 512 and not caplog.messages
    assert asked("FLASHINFER") is None and asked(None, "FLASHINFER") is None
    assert "look back 512 tokens and looks back all the way" in caplog.messages[0]


def test_texts_longer_than_it_was_made_for_are_told_unless_it_has_a_window() -> None:
    assert length_line(CONFIG, None, 4096) == length_line(CONFIG, 512, 8192) == ""
    assert "made for 4096 positions and 8192 are served" in length_line(CONFIG, None, 8192)
