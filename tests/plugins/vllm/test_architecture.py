"""A drafter is read on the CPU, whatever device and dtype vLLM has made PyTorch's own choice while it makes a model."""

from pathlib import Path
from types import SimpleNamespace

import torch
from eagle3_vllm.architecture import not_judged, read_checkpoint

from eagle3_serving.checkpoint.source import open_source


def test_where_a_model_is_made_on_a_gpu(drafter_dir: Path) -> None:
    config = SimpleNamespace(**open_source(drafter_dir).config)
    draft = SimpleNamespace(model=str(drafter_dir), revision=None, hf_config=config)
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("meta"):  # refuses the CPU's tensors as a GPU does, and has no values
            assert not_judged(SimpleNamespace(draft_model_config=draft, parallel_drafting=False)) == ""
            drafter = read_checkpoint(draft, 30)
            assert torch.get_default_device() == torch.device("meta") and torch.get_default_dtype() == torch.bfloat16
    finally:
        torch.set_default_dtype(torch.float32)
    assert {p.device.type for p in drafter.parameters()} == {"cpu"}
    assert {p.dtype for p in drafter.parameters()} == {torch.float32}
