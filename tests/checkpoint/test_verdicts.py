"""What a check may say: right, not right, and not judged here; what serve does with each."""

from pathlib import Path
from typing import Any

import drafters
import pytest
import torch
from drafters import N, known, with_tensors
from safetensors.torch import load_file, save_file

from eagle3_serving.checkpoint import Finding, check, convert
from eagle3_serving.checkpoint.facts import TargetFacts
from eagle3_serving.checkpoint.findings import verdict
from eagle3_serving.checkpoint.parity import trace
from eagle3_serving.checkpoint.read import read
from eagle3_serving.checkpoint.source import in_memory, open_source
from eagle3_serving.cli.main import main
from eagle3_serving.errors import CheckError
from eagle3_serving.serve.servable import servable
from tests.json_contract import contract


def said(found: list[Finding], where: str) -> list[Finding]:
    return [finding for finding in found if finding.where == where]


def mla(folder: Path) -> Path:
    return with_tensors(
        drafters.as_eagle(folder, known()), **{"midlayer.self_attn.kv_a_proj_with_mqa.weight": torch.ones(4, 64)}
    )


def experts(folder: Path) -> Path:
    return with_tensors(
        drafters.as_eagle(folder, known()), **{"midlayer.mlp.experts.0.up_proj.weight": torch.ones(48, 32)}
    )


def last_state(folder: Path) -> Path:
    drafter = drafters.edit(drafters.as_specforge(folder, known()), eagle_config={"use_aux_hidden_state": False})
    return with_tensors(drafter, drop="fc.weight")


@pytest.mark.parametrize("make", [mla, experts, last_state])
@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_what_is_not_computed_is_not_judged_and_passes(tmp_path: Path, make: Any, engine: str) -> None:
    folder = make(tmp_path / "d")
    assert verdict(check(folder, engine=engine)) is None
    found = servable(folder, engine)
    assert (found.directory, found.mended, len(found.unjudged)) == (folder, None, 1)
    with pytest.raises(CheckError):
        convert(folder, tmp_path / "v", to="vllm", num_target_layers=N)


def test_the_third_verdict_has_its_exit_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = mla(tmp_path / "d")
    assert main(["check", str(folder), "--json"]) == 3
    spoken = contract("check", capsys.readouterr().out)
    assert spoken["ok"] is None and spoken["findings"][0]["severity"] == "unjudged"
    assert main(["check", str(folder)]) == 3
    assert "not judged here" in capsys.readouterr().out


@pytest.mark.parametrize(("masked", "ok"), [(True, True), (False, None)])
def test_the_first_tokens_can_be_the_draft_vocabulary(tmp_path: Path, masked: bool, ok: bool | None) -> None:
    drafter = known()._replace(ids=torch.arange(drafters.DRAFT_VOCAB))
    folder = drafters.as_specforge(tmp_path / "d", drafter)
    if not masked:
        with_tensors(folder, drop="t2d")
    assert verdict(check(folder, num_target_layers=N)) is ok
    convert(folder, tmp_path / "v", to="vllm", num_target_layers=N)
    assert not load_file(tmp_path / "v" / "model.safetensors")["d2t"].any()


def test_ids_that_are_not_as_many_as_features_are_wrong(tmp_path: Path) -> None:
    folder = drafters.edit(drafters.as_vllm(tmp_path / "d", known()), eagle_aux_hidden_state_layer_ids=[1, 2, 6, 9],
                           num_aux_hidden_states=...)  # fmt: skip
    found = check(folder, engine="vllm", num_target_layers=N)
    assert {f.severity for f in said(found, "eagle_aux_hidden_state_layer_ids")} == {"error"}
    assert any("captures 4 features" in f.what for f in found)


def test_a_bias_that_vllm_makes_and_nobody_stores(tmp_path: Path) -> None:
    drafter = known(attention_bias=True)
    drafter.tensors["layers.0.self_attn.o_proj.bias"].zero_()
    folder = with_tensors(drafters.as_vllm(tmp_path / "d", drafter), drop="o_proj.bias")
    (found,) = [f for f in check(folder, engine="vllm", num_target_layers=N) if f.breaks]
    assert (found.where, found.severity) == ("layers.0.self_attn.o_proj.bias", "silent")
    convert(folder, tmp_path / "v", to="vllm", num_target_layers=N)
    assert not load_file(tmp_path / "v" / "model.safetensors")["layers.0.self_attn.o_proj.bias"].any()
    assert verdict(check(tmp_path / "v", engine="vllm", num_target_layers=N)) is True


def test_a_parallel_drafter_needs_the_servers_word(tmp_path: Path) -> None:
    folder = with_tensors(drafters.as_vllm(tmp_path / "d", known(num_layers=2)), mask_hidden=torch.ones(1, 96))
    drafters.edit(folder, mask_token_id=7)
    (found,) = said(check(folder, engine="vllm", num_target_layers=N), "mask_hidden")
    assert found.unjudged and '"parallel_drafting": true' in found.what
    served = servable(folder, "vllm")
    assert served.parallel and not served.unjudged and served.directory == folder
    # vLLM 0.32 makes Eagle3PEagleDraftModel of this, which its registry has not, and ends at start
    drafters.edit(folder, architectures=["PEagleDraftModel"])
    (found,) = said(check(folder, engine="vllm", num_target_layers=N), "architectures")
    assert found.breaks and "Eagle3PEagleDraftModel" in found.what
    convert(folder, tmp_path / "v", to="vllm", num_target_layers=N)
    assert not said(check(tmp_path / "v", engine="vllm", num_target_layers=N), "architectures")
    drafters.edit(folder, architectures=["LlamaForCausalLMEagle3"])
    assert verdict(check(drafters.edit(folder, mask_token_id=...), engine="vllm", num_target_layers=N)) is False


def test_a_causal_head_is_for_this_packages_trees(tmp_path: Path) -> None:
    """No other reader has its tensors; without masks they are no part of a drafter; a conversion is proved by what it drafts."""
    folder = drafters.as_vllm(tmp_path / "d", known(causal_head=True))
    with_tensors(folder, mask_hidden=torch.randn(1, 96))
    drafters.edit(folder, mask_token_id=7)
    found = check(folder, engine="vllm", num_target_layers=N)
    assert verdict(found) is None and "Model Runner V2" in said(found, "causal.proj.weight")[0].what
    served = servable(folder, "vllm")
    assert served.parallel and not served.unjudged
    assert verdict(check(folder, engine="sglang", num_target_layers=N)) is False
    with pytest.raises(CheckError, match="a causal head"):
        convert(folder, tmp_path / "s", to="speculators", num_target_layers=N)
    assert convert(folder, tmp_path / "v", to="vllm", num_target_layers=N).parity[0].max_difference == 0
    meant, bent = (read(open_source(path), num_target_layers=N) for path in (folder, tmp_path / "v"))
    name = "causal.mlp.down_proj.weight"
    bent.tensors[name] = in_memory(name, bent.tensors[name].read() + 0.1)
    assert not torch.allclose(*(trace(meaning, TargetFacts()).logits_SV for meaning in (meant, bent)))
    with_tensors(folder, drop="mask_hidden")
    assert verdict(check(folder, engine="vllm", num_target_layers=N)) is False


def test_layers_that_are_not_there_are_said_once(tmp_path: Path) -> None:
    folder = drafters.edit(drafters.as_specforge(tmp_path / "d", known()), num_hidden_layers=40)
    for engine in ("vllm", "sglang"):
        (found,) = [
            f for f in check(folder, engine=engine, num_target_layers=N) if f.breaks and "layer_ids" not in f.where
        ]
        assert (found.where, found.severity) == ("num_hidden_layers", "silent") and "1 layers" in found.what


def test_a_conversion_is_offered_only_where_it_would_not_be_refused(tmp_path: Path) -> None:
    def ways_out(folder: Path, engine: str) -> set[str]:
        return {f.fix for f in check(folder, engine=engine, num_target_layers=N) if f.breaks and f.engine == engine}

    gelu = drafters.edit(
        drafters.as_vllm(tmp_path / "gelu", known()), hidden_act=..., hidden_activation="gelu_pytorch_tanh"
    )
    (fix,) = ways_out(gelu, "vllm")
    assert fix.startswith("no conversion helps: vLLM cannot express activation gelu_pytorch_tanh")
    parallel = with_tensors(drafters.as_vllm(tmp_path / "p", known(num_layers=2)), mask_hidden=torch.ones(1, 96))
    drafters.edit(parallel, mask_token_id=7)
    assert any("SGLang cannot express parallel drafting" in fix for fix in ways_out(parallel, "sglang"))
    assert not any(fix.startswith("eagle3-convert") for fix in ways_out(parallel, "sglang"))
    twice = drafters.edit(drafters.as_vllm(tmp_path / "twice", known()), eagle_aux_hidden_state_layer_ids=[2, 6, 6])
    assert ways_out(twice, "vllm") == {"no conversion helps before eagle_aux_hidden_state_layer_ids is mended"}
    assert ways_out(drafters.as_vllm(tmp_path / "v", known()), "sglang") == {"eagle3-convert --to sglang"}


def test_fewer_positions_than_the_target_serves_is_a_warning(tmp_path: Path) -> None:
    target = drafters.target_directory(tmp_path / "target")
    folder = drafters.as_specforge(tmp_path / "d", known())
    for positions, warned in ((512, False), (4096, True)):
        drafters.edit(target, max_position_embeddings=positions)
        found = check(folder, target=target)
        assert verdict(found) is True and bool(said(found, "max_position_embeddings")) is warned


@pytest.mark.parametrize("command", ["eval", "bench", "tune"])
@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_another_targets_drafter_starts_no_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str, engine: str
) -> None:
    from eagle3_serving.serve.server import Server

    monkeypatch.setattr(Server, "__enter__", lambda _: pytest.fail("a server was started"))
    folder = drafters.as_vllm(tmp_path / "d", known())
    target = drafters.edit(drafters.target_directory(tmp_path / "target"), hidden_size=48)
    for name in target.glob("*.safetensors"):
        name.unlink()  # its sizes tell
    (tmp_path / "p.jsonl").write_text('{"id": "a", "family": "f", "turns": ["hello"]}\n')
    argv = [command, "--engine", engine, "--target", str(target), "--drafter", str(folder)]
    argv += [] if command == "tune" else ["--prompts", str(tmp_path / "p.jsonl")]
    argv += [] if command == "eval" else ["--out", str(tmp_path / "out.json")]
    assert main(argv) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "it is another target's drafter" in err, err
    assert not (tmp_path / "out.json").exists()


def test_a_dialect_is_told_by_contents(tmp_path: Path) -> None:
    folders = [drafters.as_eagle(tmp_path / name, known()) for name in ("AngelSlim", "plain")]
    assert {read(open_source(folder)).dialect for folder in folders} == {"eagle"}
    drafters.edit(folders[1], _name_or_path="AngelSlim/Qwen3-4B_eagle3")
    assert read(open_source(folders[1])).dialect == "angelslim"


def test_a_copy_is_served_after_its_proof_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EAGLE3_CACHE", str(tmp_path / "cache"))
    folder = drafters.as_specforge(tmp_path / "d", known())
    drafters.edit(folder, draft_vocab_size=...)  # SGLang stops without it
    target = drafters.target_directory(tmp_path / "target")
    assert servable(folder, "sglang", target).mended is not None
    tensors = load_file(folder / "model.safetensors")
    name = "midlayer.mlp.up_proj.weight"
    packed = {name: torch.zeros(48, 16, dtype=torch.uint8), f"{name}_scale": torch.ones(48, 2)}
    save_file({**tensors, **packed}, folder / "model.safetensors")
    with pytest.raises(CheckError, match="cannot be proved"):
        servable(folder, "sglang", target)
    assert not [path for path in (tmp_path / "cache" / "proved").iterdir() if path.name.startswith(".")]
