"""The check: what is not right is named with its place and the way out; what cannot be read ends in one line."""

import json
from pathlib import Path

import drafters
import pytest
import torch
from drafters import known
from safetensors.torch import load_file, save_file

from eagle3_serving.checkpoint import Finding, check, convert
from eagle3_serving.cli.main import main
from eagle3_serving.errors import InputError
from tests.json_contract import contract


def rewritten(folder: Path, **changes: torch.Tensor) -> Path:
    path = folder / "model.safetensors"
    save_file({**load_file(path), **changes}, path)
    return folder


def breaking(found: list[Finding], where: str, engine: str = "any") -> list[str]:
    return [f.what for f in found if f.breaks and f.where == where and f.engine == engine]


def test_a_universal_drafter_is_right_for_both(tmp_path: Path) -> None:
    convert(
        drafters.as_eagle(tmp_path / "eagle", known()), tmp_path / "u", to="universal", num_target_layers=drafters.N
    )
    assert check(tmp_path / "u", num_target_layers=drafters.N) == []


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("norm.weight", torch.full((32,), float("nan")), "NaN"),
        ("fc.weight", torch.zeros(32, 96), "all zero"),
        ("extra.weight", torch.ones(2), "unexpected"),
        ("norm.weight", torch.ones(3), "has shape"),
        ("d2t", torch.zeros(24, dtype=torch.long), "t2d and d2t"),
    ],
)
def test_damage_is_named(tmp_path: Path, name: str, value: torch.Tensor, said: str) -> None:
    found = check(rewritten(drafters.as_eagle(tmp_path / "d", known()), **{name: value}), engine="vllm")
    assert any(said in what for what in breaking(found, name))


def test_the_target_at_hand_is_compared(tmp_path: Path) -> None:
    target = drafters.target_directory(tmp_path / "target", layers=8)
    found = check(drafters.as_vllm(tmp_path / "d", known()), engine="vllm", target=target)
    assert breaking(found, "eagle_aux_hidden_state_layer_ids")  # boundary 9 of 8 layers
    wide = drafters.as_vllm(tmp_path / "wide", known(target_hidden_size=48, own_embedding=True))
    assert breaking(check(wide, engine="vllm", target=target), "target_hidden_size")


def test_an_embedding_unlike_the_targets(tmp_path: Path) -> None:
    """Harmless in SGLang, which overwrites it; fatal in vLLM, which keeps it. Trained with it, it is the other way round."""
    target = drafters.target_directory(tmp_path / "target")
    stale = drafters.as_eagle(tmp_path / "stale", known(own_embedding=True))
    assert breaking(check(stale, engine="vllm", target=target), "embed_tokens.weight", "vllm")
    own = drafters.edit(
        drafters.as_vllm(tmp_path / "own", known(own_embedding=True)), architectures=["LlamaForCausalLMEagle3"]
    )
    assert not breaking(check(own, engine="vllm", target=target), "embed_tokens.weight", "vllm")
    assert breaking(check(own, engine="sglang", target=target), "embed_tokens.weight", "sglang")


def test_a_window_is_told_of_where_an_engine_looks_further(tmp_path: Path) -> None:
    drafter = drafters.as_speculators(tmp_path / "s", known(sliding_window=256))
    convert(drafter, tmp_path / "u", to="universal", num_target_layers=drafters.N)
    found = check(tmp_path / "u", num_target_layers=drafters.N)
    assert [(f.engine, f.severity, f.breaks) for f in found if f.where == "sliding_window"] == [
        ("sglang", "warning", False)
    ]


def test_layers_of_two_kinds_are_refused(tmp_path: Path) -> None:
    drafter = drafters.as_vllm(tmp_path / "v", known(num_layers=3))
    drafters.edit(drafter, layer_types=["sliding_attention", "full_attention", "sliding_attention"], sliding_window=4)
    (finding,) = check(drafter, num_target_layers=drafters.N)
    assert finding.breaks and "layers of one kind alone" in finding.what


@pytest.mark.parametrize(
    ("changes", "where", "engine"),
    [
        ({"draft_vocab_size": ...}, "draft_vocab_size", "sglang"),
        ({"target_hidden_size": None}, "target_hidden_size", "sglang"),
        ({"architectures": ["LlamaForCausalLM"]}, "architectures", "sglang"),
        ({"architectures": ["MistralForCausalLM"]}, "architectures", "vllm"),
        ({"num_aux_hidden_states": 4}, "num_aux_hidden_states", "vllm"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}, "rope_parameters", "any"),
    ],
)
def test_keys_that_an_engine_stumbles_over(tmp_path: Path, changes: dict[str, object], where: str, engine: str) -> None:
    convert(
        drafters.as_eagle(tmp_path / "eagle", known()), tmp_path / "u", to="universal", num_target_layers=drafters.N
    )
    before = json.loads((tmp_path / "u" / "config.json").read_text())
    if where == "rope_parameters":
        assert before["rope_theta"] == 5000.0
    found = check(drafters.edit(tmp_path / "u", **changes), num_target_layers=drafters.N)
    assert breaking(found, where, engine)


def test_what_is_no_eagle3_drafter_is_called_by_its_name(tmp_path: Path) -> None:
    drafters.edit(drafters.as_eagle(tmp_path / "d", known()), architectures=["DFlashDraftModel"])
    assert "DFlash" in check(tmp_path / "d")[0].what
    target = drafters.target_directory(tmp_path / "target")
    with pytest.raises(InputError, match="num_attention_heads|fc.weight"):
        check(target)


def test_the_commands_contract(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = drafters.as_specforge(tmp_path / "d", known(aux_layers=(2, 5, 11)), explicit=True)
    assert main(["check", str(source), "--engine", "vllm", "--num-target-layers", "12", "--json"]) == 1
    said = contract("check", capsys.readouterr().out)
    assert said["ok"] is False
    assert {"severity", "engine", "where", "what", "fix"} == said["findings"][0].keys()
    assert main(["check", str(source), "--engine", "sglang", "--num-target-layers", "12", "--json"]) == 0
    assert contract("check", capsys.readouterr().out)["ok"] is True
    assert main(["check", str(source), "--num-target-layers", "12"]) == 1
    assert "not right" in capsys.readouterr().out
    assert main(["check", str(tmp_path / "nowhere")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_the_parsers_names_are_the_packages() -> None:
    from eagle3_serving.checkpoint import aux_layers, dialects, engines, feedback
    from eagle3_serving.cli import check as check_command
    from eagle3_serving.cli import convert as convert_command

    assert convert_command.WRITABLE == dialects.WRITABLE
    assert tuple(dialects.DIALECTS) == convert_command.DIALECTS
    assert convert_command.CONVENTIONS == aux_layers.CONVENTIONS
    assert convert_command.NORM_OUTPUTS == feedback.NORM_OUTPUTS
    assert tuple(engines.ENGINES) == check_command.ENGINES
