"""A conversion: its proof can fail, its refusals name the feature, its output is whole or absent, its source is not trusted."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import drafters
import pytest
import torch
from cases import CASES
from drafters import known
from safetensors.torch import load_file, save_file

from eagle3_serving.checkpoint import convert
from eagle3_serving.checkpoint.facts import TargetFacts
from eagle3_serving.checkpoint.parity import compare
from eagle3_serving.checkpoint.read import read
from eagle3_serving.checkpoint.source import in_memory, open_source
from eagle3_serving.cli.convert import main
from eagle3_serving.drafter import RopeConfig
from eagle3_serving.errors import CheckError, InputError
from tests.json_contract import contract

N = drafters.N


@pytest.mark.parametrize(
    "change",
    [
        {"aux_layers": (1, 5, 8)},
        {"norm_before_residual": True},
        {"norm_output": True},
        {"rope": RopeConfig(10000.0)},
        {"rms_norm_eps": 1e-2},
    ],
)
def test_the_proof_sees_every_difference_of_rules(tmp_path: Path, change: dict[str, object]) -> None:
    meant = read(open_source(drafters.as_vllm(tmp_path / "d", known())), num_target_layers=N)
    same = compare("vllm", meant, meant, TargetFacts())
    assert same.tokens_equal and same.max_difference == 0 and same.steps >= 3
    other = replace(meant, config=replace(meant.config, **change))
    assert compare("vllm", meant, other, TargetFacts()).max_difference > 1e-3


def test_the_proof_sees_a_tensor_that_was_lost(tmp_path: Path) -> None:
    meant = read(open_source(drafters.as_vllm(tmp_path / "d", known())), num_target_layers=N)
    for name in meant.tensors:
        other = replace(meant, tensors={**meant.tensors, name: in_memory(name, meant.tensors[name].read() * 0.9)})
        assert compare("vllm", meant, other, TargetFacts()).max_difference > 1e-5, name


@pytest.mark.parametrize(
    ("changes", "to", "said"),
    [
        ({"norm_before_residual": True}, "sglang", "norm_before_residual"),
        ({"attention_bias": True}, "universal", "biases of q, k and v"),
        ({"qk_norm": True}, "sglang", "norms of queries and keys"),
        ({"num_layers": 2}, "eagle", "2 layers"),
        ({"norm_output": True}, "eagle", "norm_output"),
        ({"aux_layers": (2, 5, 11)}, "eagle", "auxiliary boundaries"),
        ({"head_dim": 16}, "eagle", "head_dim 16"),
        ({"pre_fc_norm": "concat"}, "eagle", "norm before fc"),
        ({"aux_layers": (2, 6, 12)}, "sglang", "boundaries"),
    ],
)
def test_a_refusal_names_the_feature(tmp_path: Path, changes: dict[str, object], to: str, said: str) -> None:
    source = drafters.as_vllm(tmp_path / "d", known(**changes))
    with pytest.raises(CheckError, match=said):
        convert(source, tmp_path / "out", to=to, num_target_layers=N)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["d"]


def test_fc_bias_has_no_place_in_vllm(tmp_path: Path) -> None:
    with pytest.raises(CheckError, match="fc.bias"):
        convert(
            drafters.as_modelopt(tmp_path / "d", known(fc_bias=True)), tmp_path / "out", to="vllm", num_target_layers=N
        )


def test_an_unsorted_vocabulary_and_unsorted_features_are_put_in_order(tmp_path: Path) -> None:
    source = drafters.as_speculators(tmp_path / "d", known())
    tensors = load_file(source / "model.safetensors")
    order = torch.randperm(24, generator=torch.Generator().manual_seed(1))
    tensors["lm_head.weight"] = tensors["lm_head.weight"][order]
    tensors["d2t"] = drafters.IDS[order] - torch.arange(24)
    save_file(tensors, source / "model.safetensors")
    drafters.edit(source, eagle_aux_hidden_state_layer_ids=[9, 2, 6])
    for to in ("vllm", "speculators", "eagle"):
        report = convert(source, tmp_path / to, to=to, num_target_layers=N)
        assert report.parity[0].tokens_equal and report.aux_boundaries == (2, 6, 9)
    written = load_file(tmp_path / "eagle" / "model.safetensors")
    assert bool((written["d2t"] + torch.arange(24)).diff().gt(0).all())
    assert torch.equal(written["fc.weight"], tensors["fc.weight"].unflatten(1, (3, 32))[:, [1, 2, 0]].flatten(1))


def test_scales_pass_through_and_are_part_of_the_proof(tmp_path: Path) -> None:
    source = drafters.as_vllm(tmp_path / "d", known())
    tensors = load_file(source / "model.safetensors")
    for name in [n for n in tensors if "_proj" in n]:
        scale = tensors[name].abs().max() / 400
        tensors[name] = (tensors[name] / scale).to(torch.float8_e4m3fn)
        tensors[f"{name}_scale"] = scale
    save_file(tensors, source / "model.safetensors")
    drafters.edit(source, quantization_config={"quant_method": "fp8", "ignore": ["lm_head", "layers.0.mlp.up_proj"]})
    report = convert(source, tmp_path / "out", to="universal", num_target_layers=N)
    assert len(report.parity) == 2 and all(p.max_difference == 0 for p in report.parity)
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert written["midlayer.mlp.up_proj.weight"].dtype == torch.float8_e4m3fn
    assert torch.equal(written["midlayer.mlp.up_proj.weight_scale"], tensors["layers.0.mlp.up_proj.weight_scale"])
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["quantization_config"]["ignore"] == ["lm_head", "midlayer.mlp.up_proj"]
    del tensors["layers.0.mlp.up_proj.weight_scale"]
    save_file(tensors, source / "model.safetensors")
    with pytest.raises(CheckError, match="without its"):
        convert(source, tmp_path / "again", to="vllm", num_target_layers=N)


def test_the_target_lends_what_a_dialect_stores(tmp_path: Path) -> None:
    target = drafters.target_directory(tmp_path / "target")
    source = drafters.as_eagle(tmp_path / "d", known())
    convert(source, tmp_path / "s", to="speculators", target=target)
    assert torch.equal(load_file(tmp_path / "s" / "model.safetensors")["embed_tokens.weight"], drafters.embedding())
    convert(tmp_path / "s", tmp_path / "back", to="eagle", target=target)  # and is left out again
    assert "embed_tokens.weight" not in load_file(tmp_path / "back" / "model.safetensors")


def test_where_it_came_from_is_written_and_no_path(tmp_path: Path) -> None:
    convert(
        drafters.as_eagle(tmp_path / "mine", known()), tmp_path / "out", to="vllm", num_target_layers=N, parity=False
    )
    noted = json.loads((tmp_path / "out" / "config.json").read_text())["eagle3_serving"]
    assert (noted["source"], noted["source_dialect"], len(noted["source_blake3"])) == ("mine", "eagle", 64)
    assert str(tmp_path) not in json.dumps(noted)


def test_ambiguous_ids_ask_and_an_answer_settles_them(tmp_path: Path) -> None:
    source = drafters.as_specforge(tmp_path / "d", known(aux_layers=(4, 6, 9)), explicit=True)
    with pytest.raises(CheckError, match="--aux-convention"):
        convert(source, tmp_path / "out", to="vllm", num_target_layers=N)
    for convention, boundaries in (("output", (4, 6, 9)), ("boundary", (3, 5, 8))):
        report = convert(source, tmp_path / convention, to="vllm", num_target_layers=N, aux_convention=convention)
        assert report.aux_boundaries == boundaries


def test_the_hub_caches_links_work_and_others_are_not_followed(tmp_path: Path) -> None:
    made = drafters.as_eagle(tmp_path / "made", known())
    snapshot = tmp_path / "models--a--b" / "snapshots" / "rev"
    blobs = tmp_path / "models--a--b" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    (tmp_path / "secret").write_text("secret")
    for i, path in enumerate([*made.iterdir()]):
        path.rename(blobs / str(i))
        (snapshot / path.name).symlink_to(Path("../../blobs") / str(i))
    (blobs / "card").write_text("card")
    (snapshot / "README.md").symlink_to("../../blobs/card")
    (snapshot / "LICENSE").symlink_to(tmp_path / "secret")
    convert(snapshot, tmp_path / "out", to="vllm", num_target_layers=N)
    assert (tmp_path / "out" / "README.md").read_text() == "card"
    assert not (tmp_path / "out" / "LICENSE").exists()


def test_a_hub_id_without_a_hub_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    assert main(["nobody/nothing", str(tmp_path / "out"), "--to", "vllm"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "nobody/nothing" in said and "hub" in said


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = drafters.as_eagle(tmp_path / "d", known())
    common = [str(source), "--to", "universal", "--num-target-layers", "12", "--json"]
    assert main([*common[:1], str(tmp_path / "out"), *common[1:]]) == 0
    said = contract("convert", capsys.readouterr().out)
    assert said["parity"][0]["tokens_equal"] and said["parity"][0]["max_difference"] == 0
    assert main([*common[:1], str(tmp_path / "out"), *common[1:]]) == 2  # it is there already
    assert "exists already" in capsys.readouterr().err
    assert main([*common[:1], str(tmp_path / "bare"), *common[1:], "--no-parity", "--dtype", "bfloat16"]) == 0
    said = contract("convert", capsys.readouterr().out)
    assert (
        said["parity"] == [] and "--no-parity" in said["parity_note"] and any("cast" in note for note in said["notes"])
    )
    assert load_file(tmp_path / "bare" / "model.safetensors")["fc.weight"].dtype == torch.bfloat16


def test_a_killed_conversion_leaves_no_destination(tmp_path: Path) -> None:
    """Killed at once, by a signal that can be caught: nothing at all stays. (By one that cannot: a hidden folder.)"""
    source = CASES["eagle"].make(tmp_path / "d", CASES["eagle"].drafter)
    script = (
        "import sys, time; from eagle3_serving.checkpoint import convert as c; from eagle3_serving.cli.convert import main;"
        "import eagle3_serving.checkpoint.convert as m; sys.modules['eagle3_serving.checkpoint.convert']._prove ="
        " lambda *a: (print('writing', flush=True), time.sleep(60));"
        f"sys.exit(main([{str(source)!r}, {str(tmp_path / 'out')!r}, '--to', 'vllm', '--num-target-layers', '12']))"
    )
    for number in (signal.SIGTERM, signal.SIGKILL):
        process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None and process.stdout.readline() == "writing\n"
        time.sleep(0.1)
        os.kill(process.pid, number)
        process.wait()
        assert not (tmp_path / "out").exists()
        left = [path.name for path in tmp_path.iterdir() if path.name != "d"]
        assert all(name.startswith(".out.partial-") for name in left) and (number == signal.SIGKILL or not left)


def test_a_pickle_is_not_executed(tmp_path: Path) -> None:
    from benchmarks.fuzz_checkpoints import Bomb

    source = drafters.as_eagle(tmp_path / "d", known())
    (source / "model.safetensors").unlink()
    torch.save({"fc.weight": torch.ones(2), "x": Bomb(tmp_path / "mark")}, source / "pytorch_model.bin")
    with pytest.raises(InputError, match="would run code"):
        convert(source, tmp_path / "out", to="vllm")
    assert not (tmp_path / "mark").exists()


def test_mutated_checkpoints_end_in_a_clear_line() -> None:
    """A few of the 5,000 of benchmarks/fuzz_checkpoints.py."""
    from benchmarks.fuzz_checkpoints import fuzz

    record = fuzz(250, first=100_000)
    assert not record["failures"]
    assert sum(record["exit_codes"][kind].get("2", 0) for kind in record["exit_codes"]) > 50


def test_a_parallel_drafter_goes_between_vllm_and_speculators_alone(tmp_path: Path) -> None:
    source = drafters.as_vllm(tmp_path / "d", known())
    tensors = {**load_file(source / "model.safetensors"), "mask_hidden": torch.randn(1, 1, 96)}
    save_file(tensors, source / "model.safetensors")
    drafters.edit(source, mask_token_id=7)
    report = convert(source, tmp_path / "s", to="speculators", num_target_layers=N)
    assert report.parity[0].max_difference == 0
    convert(tmp_path / "s", tmp_path / "v", to="vllm", num_target_layers=N)
    assert torch.equal(load_file(tmp_path / "v" / "model.safetensors")["mask_hidden"], tensors["mask_hidden"])
    assert json.loads((tmp_path / "v" / "config.json").read_text())["mask_token_id"] == 7
    for to in ("sglang", "universal", "eagle"):
        with pytest.raises(CheckError, match="P-EAGLE"):
            convert(source, tmp_path / to, to=to, num_target_layers=N)
