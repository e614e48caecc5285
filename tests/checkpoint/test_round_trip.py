"""Every pair of dialects that can express a drafter gives it back: equal tensors and equal config after A -> B -> A."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import drafters
import pytest
import torch
from cases import CASES
from safetensors.torch import load_file

from eagle3_serving.checkpoint import convert, load_drafter
from eagle3_serving.checkpoint.dialects import WRITABLE
from eagle3_serving.errors import CheckError


def config_of(folder: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    del config["eagle3_serving"]
    return config


@pytest.mark.parametrize("name", CASES)
def test_there_and_back(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    source = case.make(tmp_path / "source", case.drafter)
    first = {}
    for dialect in WRITABLE:
        made = partial(convert, source, tmp_path / dialect, to=dialect, num_target_layers=drafters.N)
        if dialect not in case.dialects:
            with pytest.raises(CheckError, match="cannot express"):
                made()
            assert not (tmp_path / dialect).exists()
            continue
        report = made()  # with the proof: the source under its own rules against each engine's reading of the output
        assert report.source_dialect == case.source
        assert report.parity and all(p.tokens_equal and p.max_difference == 0 for p in report.parity)
        first[dialect] = tmp_path / dialect
    for a, made in first.items():
        tensors, config = load_file(made / "model.safetensors"), config_of(made)
        for b in first.keys() - {a}:
            there, back = tmp_path / f"{a}-{b}", tmp_path / f"{a}-{b}-{a}"
            convert(made, there, to=b, num_target_layers=drafters.N, parity=False)
            convert(there, back, to=a, num_target_layers=drafters.N, parity=False)
            again = load_file(back / "model.safetensors")
            assert again.keys() == tensors.keys(), (a, b)
            assert all(again[n].dtype == t.dtype and torch.equal(again[n], t) for n, t in tensors.items()), (a, b)
            assert config_of(back) == config, (a, b)


@pytest.mark.parametrize("name", CASES)
def test_what_is_loaded_is_what_was_made(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    source = case.make(tmp_path / "source", case.drafter)
    width = case.drafter.config.hidden_size
    drafter = load_drafter(
        source,
        target_embedding=drafters.embedding()[:, :width],
        target_head=drafters.embedding(98),
        num_target_layers=drafters.N,
    )
    assert drafter.config.aux_layers == case.drafter.config.aux_layers
    for field in (
        "norm_before_residual",
        "norm_output",
        "pre_fc_norm",
        "qk_norm",
        "num_layers",
        "rope",
        "fc_bias",
        "sliding_window",
    ):
        assert getattr(drafter.config, field) == getattr(case.drafter.config, field), field
    expected = dict(case.drafter.tensors)
    if name == "no head":
        expected["lm_head.weight"] = drafters.embedding(98)
    for parameter, tensor in expected.items():
        wanted = tensor.bfloat16().float() if name == "bf16" else tensor
        assert torch.equal(drafter.get_parameter(parameter), wanted), parameter
    ids = torch.arange(drafters.VOCAB) if case.drafter.ids is None else case.drafter.ids
    assert torch.equal(drafter.vocabulary.target_ids, ids)
