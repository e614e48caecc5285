"""Whose embedding a drafter reads: its own, a copy of the target's, or one that is nearly that; and where a target keeps it."""

import json
from pathlib import Path
from typing import Any

import drafters
import pytest
import torch
from drafters import N, config_of, known
from safetensors.torch import load_file, save_file

from eagle3_serving.checkpoint import Finding, check, convert
from eagle3_serving.checkpoint.findings import verdict
from eagle3_serving.errors import CheckError


def said(found: list[Finding], where: str) -> list[Finding]:
    return [finding for finding in found if finding.where == where]


@pytest.mark.parametrize("make", [drafters.as_specforge, drafters.as_vllm, drafters.as_speculators, drafters.as_eagle])
@pytest.mark.parametrize("to", ["sglang", "universal"])
def test_an_own_copy_of_the_embedding_converts_without_a_target(tmp_path: Path, make: Any, to: str) -> None:
    report = convert(make(tmp_path / "d", known(own_embedding=True)), tmp_path / to, to=to, num_target_layers=N)
    assert report.parity and all(p.tokens_equal and p.max_difference == 0 for p in report.parity)
    assert any("SGLang puts the target's embedding" in note and "--target DIR" in note for note in report.notes)


@pytest.mark.parametrize("to", ["vllm", "sglang", "universal", "speculators", "eagle"])
def test_an_embedding_a_little_off_the_targets_is_said_and_the_targets_is_proved(tmp_path: Path, to: str) -> None:
    target = drafters.target_directory(tmp_path / "target")
    drafter = known(own_embedding=True)
    drafter.tensors["embed_tokens.weight"] = drafters.embedding() * 1.01
    source = drafters.as_specforge(tmp_path / "d", drafter)
    report = convert(source, tmp_path / to, to=to, target=target)
    assert report.parity and all(p.max_difference == 0 for p in report.parity)
    assert any("1.00% from the target's" in note for note in report.notes)
    stored = load_file(tmp_path / to / "model.safetensors")
    if to == "speculators":
        assert torch.equal(stored["embed_tokens.weight"], drafters.embedding())
    else:
        assert "embed_tokens.weight" not in stored
    found = said(check(source, target=target), "embed_tokens.weight")
    assert [f.severity for f in found] == ["warning"] and "1.00%" in found[0].what


def test_an_own_embedding_that_is_meant_goes_to_sglang_where_it_is_nearly_the_targets(tmp_path: Path) -> None:
    target = drafters.target_directory(tmp_path / "target")
    drafter = known(own_embedding=True)
    with pytest.raises(CheckError, match="an embedding of its own, 1.*% from the target's"):
        convert(drafters.as_vllm(tmp_path / "far", drafter), tmp_path / "s", to="sglang", target=target)
    drafter.tensors["embed_tokens.weight"] = drafters.embedding() * 1.01
    report = convert(drafters.as_vllm(tmp_path / "near", drafter), tmp_path / "s", to="sglang", target=target)
    assert report.parity[0].max_difference == 0 and any("1.00%" in note for note in report.notes)


@pytest.mark.parametrize("to", ["vllm", "universal", "speculators"])
def test_a_conversion_does_not_make_a_copy_the_drafters_own(tmp_path: Path, to: str) -> None:
    target = drafters.target_directory(tmp_path / "target")
    source = drafters.as_specforge(tmp_path / "d", known(own_embedding=True))
    convert(source, tmp_path / "one", to=to, num_target_layers=N)
    convert(tmp_path / "one", tmp_path / "two", to="vllm", num_target_layers=N)
    for folder in (tmp_path / "one", tmp_path / "two"):
        (found,) = said(check(folder, engine="vllm", target=target), "embed_tokens.weight")
        assert found.severity == "silent" and "the drafter was trained with the target's" in found.what
    convert(tmp_path / "two", tmp_path / "three", to="vllm", target=target)
    assert "embed_tokens.weight" not in load_file(tmp_path / "three" / "model.safetensors")


@pytest.mark.parametrize(
    ("embedding", "rows", "ok"),
    [
        ("copy", 1, True),
        ("near", 1, True),
        ("other", 1, False),
        ("none", 1, None),
        ("copy", 9, False),
        ("copy", -1, False),
    ],
)
def test_a_padded_vocabulary_is_told_from_another_targets(
    tmp_path: Path, embedding: str, rows: int, ok: bool | None
) -> None:
    target = drafters.target_directory(tmp_path / "target")
    drafters.edit(target, vocab_size=drafters.VOCAB + rows)
    padded = torch.cat([drafters.embedding(), torch.zeros(16, drafters.HIDDEN)])
    save_file({"model.embed_tokens.weight": padded, "lm_head.weight": padded + 1}, target / "model.safetensors")
    drafter = known(own_embedding=embedding != "none")
    if embedding in ("copy", "near"):
        drafter.tensors["embed_tokens.weight"] = drafters.embedding() * (1.01 if embedding == "near" else 1)
    source = drafters.as_specforge(tmp_path / "d", drafter)
    assert verdict(check(source, target=target)) is ok
    if ok is False:
        with pytest.raises(CheckError, match="another target's drafter"):
            convert(source, tmp_path / "s", to="speculators", target=target)
        return
    report = convert(source, tmp_path / "s", to="speculators", target=target)
    assert report.parity[0].max_difference == 0
    assert torch.equal(load_file(tmp_path / "s" / "model.safetensors")["embed_tokens.weight"], drafters.embedding())


LAYOUTS = [
    ("model.embed_tokens.weight", None),
    ("model.language_model.embed_tokens.weight", "text_config"),
    ("language_model.model.embed_tokens.weight", "text_config"),
    ("thinker.model.embed_tokens.weight", "thinker_config"),
    ("transformer.wte.weight", None),
    ("language_model.embed_tokens.weight", "llm_config"),
]


@pytest.mark.parametrize(("name", "nested"), LAYOUTS)
def test_the_targets_embedding_is_found_in_every_layout(tmp_path: Path, name: str, nested: str | None) -> None:
    target = tmp_path / "target"
    target.mkdir()
    sizes: dict[str, Any] = {
        "model_type": "x",
        "num_hidden_layers": N,
        "hidden_size": drafters.HIDDEN,
        "vocab_size": drafters.VOCAB,
    }
    if nested == "thinker_config":
        sizes = {"text_config": sizes}
    (target / "config.json").write_text(json.dumps({nested: sizes, "model_type": "y"} if nested else sizes))
    padded = torch.cat([drafters.embedding(), torch.zeros(8, drafters.HIDDEN)])
    others = {"visual.embed_tokens.weight": padded + 1, "model.layers.0.mlp.up_proj.weight": padded + 2}
    save_file({name: padded, **others}, target / "model.safetensors")
    source = drafters.as_eagle(tmp_path / "d", known())
    convert(source, tmp_path / "s", to="speculators", target=target)
    assert torch.equal(load_file(tmp_path / "s" / "model.safetensors")["embed_tokens.weight"], drafters.embedding())


@pytest.mark.parametrize("own", [False, True])
def test_eagle_is_left_to_load_the_targets_embedding(tmp_path: Path, own: bool) -> None:
    """Its code loads it only where no target_hidden_size stands."""
    convert(
        drafters.as_specforge(tmp_path / "d", known(own_embedding=own)), tmp_path / "e", to="eagle", num_target_layers=N
    )
    assert ("target_hidden_size" in config_of(tmp_path / "e")) is own
    assert verdict(check(tmp_path / "e", engine="eagle", num_target_layers=N)) is True
    with_key = drafters.edit(tmp_path / "e", target_hidden_size=drafters.HIDDEN)
    assert verdict(check(with_key, engine="eagle", num_target_layers=N)) is own
    wide = drafters.as_vllm(tmp_path / "wide", known(target_hidden_size=48))
    with pytest.raises(CheckError, match="an embedding that is not stored"):
        convert(wide, tmp_path / "w", to="eagle", num_target_layers=N)
