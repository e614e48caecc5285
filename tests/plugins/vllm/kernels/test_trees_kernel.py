"""Which passes are all trees of one width, and that attention has room for each of them."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from batches import DEVICE
from eagle3_vllm.attention import uniform
from eagle3_vllm.attention.split_kv import Gpu
from eagle3_vllm.settings import Settings, read_trees
from eagle3_vllm.trees import PassRows, Trees

SLOTS, NODES = 8, 16


def trees(text: str = "") -> Trees:
    config: Any = SimpleNamespace(
        scheduler_config=SimpleNamespace(max_num_seqs=SLOTS),
        num_speculative_tokens=NODES,
        model_config=SimpleNamespace(max_model_len=600),
        speculative_config=SimpleNamespace(num_speculative_tokens_per_batch_size=None),
    )
    return Trees(config, Settings(trees=read_trees(text)), torch.device(DEVICE))


def begun(drafts: list[int], prompt: int = 0) -> tuple[Trees, PassRows | None]:
    """Requests with so many draft tokens, the last of them with `prompt` rows of a prompt before its own."""
    made, count = trees(), len(drafts)
    drafts_B = np.array(drafts, dtype=np.int32)
    rows_B = drafts_B + 1
    rows_B[-1] += prompt
    starts_B1 = torch.tensor([0, *np.cumsum(rows_B)], dtype=torch.int32)
    length_B = torch.from_numpy(rows_B) + 50
    batch: Any = SimpleNamespace(
        num_reqs=count,
        num_reqs_after_padding=count,
        num_draft_tokens_per_req=drafts_B,
        num_scheduled_tokens=rows_B,
        has_prefill=prompt > 0,
        num_tokens=int(rows_B.sum()),
        num_tokens_after_padding=int(rows_B.sum()),
        query_start_loc=starts_B1.to(DEVICE),
        cu_num_logits=torch.tensor([0, *np.cumsum(drafts_B + 1)], dtype=torch.int32, device=DEVICE),
        idx_mapping=torch.arange(count, device=DEVICE),
        seq_lens=length_B.to(DEVICE),
        seq_lens_cpu_upper_bound=length_B,
        positions=torch.zeros(int(rows_B.sum()), dtype=torch.long, device=DEVICE),
    )
    return made, made.begin(batch, full=False, for_capture=False)


@pytest.mark.parametrize(
    "drafts, prompt, decoding, even",
    [([16, 16, 16], 0, True, True), ([16, 5, 16], 0, True, False), ([16, 0], 0, True, False), ([16, 16], 9, False, False)],
)  # fmt: skip
def test_only_trees_of_one_width_go_side_by_side(drafts: list[int], prompt: int, decoding: bool, even: bool) -> None:
    """Near the longest text a request is given fewer drafts: as [B, R] its neighbours' rows would be taken for its own."""
    made, rows = begun(drafts, prompt)
    assert rows is not None and (made.whole, rows.whole) == (decoding, even)


def test_there_is_room_for_drafts_that_were_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """A narrower pass may be split into more parts than the widest."""
    an_h100 = SimpleNamespace(of=lambda _: Gpu(132, 227 << 10))
    monkeypatch.setattr(uniform, "Gpu", an_h100)
    wide = [(batch, NODES + 1) for batch in range(1, SLOTS + 1)]
    at = 32, 8, 128, torch.bfloat16, 8192, torch.device("cpu")
    made, narrow = uniform.Plans("split", *at, trees().passes()), uniform.Plans("split", *at, wide)

    def missing(plans: uniform.Plans) -> int:
        cut = [(b, r) for b in range(1, SLOTS + 1) for r in range(2, NODES + 2)]
        return sum(plans.scratch.lse.numel() < plans.of(b, r).splits * b * r * 32 for b, r in cut)

    assert missing(made) == 0 < missing(narrow)


def test_masks_are_as_deep_as_what_may_be_drafted() -> None:
    """vLLM's warm-up asks for all nodes there are, whichever trees are served."""
    assert trees("0;2,2,5;3,2,7").depth == trees().depth == 8
