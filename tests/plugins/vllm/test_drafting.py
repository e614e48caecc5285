"""Who draws which tree: kernels where they can count it, else PyTorch's own operations, which can do any."""

import logging
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from drafters import HIDDEN, VOCAB
from pretend_device import capture, pretend_device
from torch import Tensor

pytest.importorskip("vllm")

from eagle3_vllm import drafting
from eagle3_vllm.drafting import MaskRows, Start, TreeDrafter
from eagle3_vllm.kernels.noise import SharedNoise
from small_drafts import SLOTS, Alone, drawn, small_drafter, start, tree_drafter

from eagle3_serving.serve.shape import Shape


@pytest.mark.parametrize("vocabulary, by_kernels", [(32_000, 1), ((1 << 20) + 1, 0)])
def test_what_kernels_cannot_count_is_drawn_without(
    monkeypatch: pytest.MonkeyPatch, caplog: Any, vocabulary: int, by_kernels: int
) -> None:
    usual, wide = Shape(2, 4, 9), Shape(2, 46, 60)
    model: Any = SimpleNamespace(
        model=SimpleNamespace(config=SimpleNamespace(draft_vocab_size=vocabulary)), whole_vocabulary=True
    )
    trees: Any = SimpleNamespace(
        by_kernels=True, device=torch.device("cpu"), shapes={9: usual, 60: wide}, parents_SK=torch.zeros(3, 59)
    )
    monkeypatch.setattr(drafting.logger, "propagate", True)
    drawn: list[str] = []
    monkeypatch.setattr(TreeDrafter, "_by_core", lambda *_: drawn.append("core"))
    monkeypatch.setattr(TreeDrafter, "_by_kernels", lambda *_: drawn.append("kernels"))
    with caplog.at_level(logging.WARNING):
        drafter = TreeDrafter(model, trees, None)
    for shape in (usual, wide):
        drafter.draw(shape, None, None)  # type: ignore[arg-type]
    assert drawn == [*(["kernels"] * by_kernels), *(["core"] * (2 - by_kernels))]
    assert len(caplog.messages) == 2 - by_kernels and all("at most 45" in line for line in caplog.messages)


@pytest.mark.parametrize("head", [False, True], ids=["masks", "causal head"])
def test_a_parallel_draft_obeys_a_captures_rules(monkeypatch: pytest.MonkeyPatch, head: bool) -> None:
    """Its pass over masks and every depth after it, replayed on other tokens, give what an eager draft of those gives."""
    monkeypatch.setattr(drafting, "prefix_of", lambda *_: Alone())
    drafter = small_drafter(mask_token_id=7, causal_head=head)

    def depths(state_BH: Tensor, tokens_BK: Tensor, prefix_B: Tensor) -> list[Tensor]:
        model: Any = SimpleNamespace(
            model=drafter,
            attention=[None],
            window=None,
            draft_logits=drafter.logits,
            combine_hidden_states=drafter.fuse,
        )
        start = Start(state_BH, state_BH, [tokens_BK], prefix_B, prefix_B, prefix_B > 0, 64)
        rows = MaskRows(model, start, 2)
        state_BKH, found = state_BH[:, None].expand(-1, tokens_BK.shape[1], -1), []
        for _ in range(2):
            logits_BKV, state_BKH = rows.step(tokens_BK, state_BKH, tokens_BK, tokens_BK > 0)
            found.append(logits_BKV)
        return found

    states, tokens = torch.randn(2, 3, HIDDEN), torch.randint(VOCAB, (2, 3, 4))
    prefixes = torch.tensor([[5, 9, 2], [11, 3, 7]])
    eager = depths(states[1], tokens[1], prefixes[1])
    assert torch.equal(eager[1][:, 0], eager[1][:, 1]) is not head
    with pretend_device():
        drafter.to("pretend")
        given = [x[0].to("pretend") for x in (states, tokens, prefixes)]
        with capture() as graph:
            replayed = depths(*given)
        for buffer, value in zip(given, (states[1], tokens[1], prefixes[1]), strict=True):
            buffer.copy_(value.to("pretend"))
        graph.replay()
        for mine, want in zip(replayed, eager, strict=True):
            torch.testing.assert_close(mine.to("cpu"), want)


PARALLEL = {"mask_token_id": 7, "causal_head": True}


@pytest.mark.parametrize("changes", [{}, PARALLEL], ids=["depth by depth", "masks"])
def test_a_draft_by_the_samplers_noise_obeys_a_captures_rules(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    """Replayed under other seeds, temperatures and positions in the same buffers it draws what an eager draft of those draws."""
    temperature_XS = torch.tensor([[0.0, 1.0, 0.7, 0.0, 1.0], [1.0, 0.0, 0.7, 1.3, 0.4]])
    seeds_XS = torch.stack([torch.arange(SLOTS), -(1 << 40) - torch.arange(SLOTS)])
    slots_XB = torch.tensor([[2, 0, 4, -1], [1, 3, 2, 0]])
    prefix_XB = torch.tensor([[4, 9, 2, 0], [11, 3, 7, 5]])
    eager = tree_drafter(monkeypatch, small_drafter(**changes), "cpu", by_kernels=False)
    noise = [SharedNoise(*x, False) for x in zip(temperature_XS, seeds_XS, strict=True)]
    wanted = [drawn(eager, start(slots_XB[x], noise[x], prefix_XB[x])) for x in range(2)]
    plain = [drawn(eager, start(slots_XB[x], None, prefix_XB[x])) for x in range(2)]
    for x in range(2):
        cold_B = (slots_XB[x] < 0) | (temperature_XS[x][slots_XB[x]] == 0)
        for mine, theirs in zip(wanted[x], plain[x], strict=True):
            assert torch.equal(mine[cold_B], theirs[cold_B])
        assert (wanted[x][0] != plain[x][0]).any(1)[~cold_B].all()
    with pretend_device():
        drafter = tree_drafter(monkeypatch, small_drafter(**changes), "pretend", by_kernels=False)
        held = [x[0].clone().to("pretend") for x in (temperature_XS, seeds_XS, slots_XB, prefix_XB)]
        begun = start(held[2], SharedNoise(*held[:2], False), held[3])
        drawn(drafter, begun)  # as vLLM does before a capture
        with capture() as graph:
            found = drawn(drafter, begun)
        assert torch.equal(found[0].to("cpu"), wanted[0][0])
        for buffer, values in zip(held, (temperature_XS, seeds_XS, slots_XB, prefix_XB), strict=True):
            buffer.copy_(values[1].to("pretend"))
        begun.drafting_B.fill_(True)
        graph.replay()
        for mine, theirs in zip(found, wanted[1], strict=True):
            assert torch.equal(mine.to("cpu"), theirs)
