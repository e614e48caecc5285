"""vLLM's backends for GPUs are what our implementation goes before."""

import ast
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("vllm")

from eagle3_vllm.attention.layout import pages
from eagle3_vllm.attention.support import unsupported
from eagle3_vllm.compat import FORWARD, AttentionBackendEnum, gpu_attention_problems


@pytest.mark.parametrize("name", ["FLASH_ATTN", "TRITON_ATTN"])
def test_a_layer_is_called_as_known(name: str) -> None:
    assert gpu_attention_problems(name) == []


def test_flashinfer_is_read_where_it_cannot_be_imported() -> None:
    if find_spec("flashinfer") is not None:
        assert gpu_attention_problems("FLASHINFER") == []
        return
    (said,) = gpu_attention_problems("FLASHINFER")
    assert "attention backend FLASHINFER" in said and "flashinfer" in said
    backends = find_spec("vllm.v1.attention.backends")
    assert backends is not None and backends.submodule_search_locations
    source = ast.parse(Path(backends.submodule_search_locations[0], "flashinfer.py").read_text())
    classes = {node.name: node for node in source.body if isinstance(node, ast.ClassDef)}
    (forward,) = (f for f in classes["FlashInferImpl"].body if isinstance(f, ast.FunctionDef) and f.name == "forward")
    assert tuple(argument.arg for argument in forward.args.args) == FORWARD
    fields = {node.target.id for node in classes["FlashInferMetadata"].body if isinstance(node, ast.AnnAssign)}
    assert "num_actual_tokens" in fields and "block_table" not in fields  # hence `eagle3_table`


def test_a_cache_of_another_layout_is_refused() -> None:
    with pytest.raises(ValueError, match=r"heads of 64: known is .* 128\]"):
        pages(torch.zeros(2, 3, 16, 64), 64)


def told(
    backend: str | None, draft: str | None = None, soft_cap: float | None = None, block: int | None = None
) -> list[str]:
    by_name = {name: AttentionBackendEnum[name] if name else None for name in (backend, draft)}
    config = SimpleNamespace(
        attention_config=SimpleNamespace(backend=by_name[backend]),
        speculative_config=SimpleNamespace(attention_backend=by_name[draft]),
        cache_config=SimpleNamespace(block_size=block),
        model_config=SimpleNamespace(hf_text_config=SimpleNamespace(attn_logit_softcapping=soft_cap)),
    )
    return unsupported(config)


def test_which_backends_serve_trees(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    assert told(None) == told("FLASH_ATTN") == told("TRITON_ATTN") == told("TRITON_ATTN", "FLASH_ATTN") == []
    assert told("FLEX_ATTENTION") == [
        "attention backend FLEX_ATTENTION: only FLASH_ATTN, FLASHINFER, TRITON_ATTN are known"
    ]
    assert "FLEX_ATTENTION" in told(None, "FLEX_ATTENTION")[0]
    assert "--block-size 64" in told("FLASHINFER", block=128)[0] and told("FLASH_ATTN", block=128) == []
    assert told("FLASH_ATTN", soft_cap=50.0) == ["attention with a soft cap on its scores"]
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (10, 0))
    assert "FLASH_ATTN or FLASHINFER or TRITON_ATTN" in told(None)[0]
    assert told("TRITON_ATTN") == []
