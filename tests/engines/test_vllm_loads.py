"""vLLM's own configuration and loader: what was converted arrives whole; what breaks in silence was named before."""

import sys
from pathlib import Path
from typing import NamedTuple

import drafters
import pytest
import torch
from cases import CASES
from drafters import known
from loaders import Loaded, differing, load_all, tiny_target

from eagle3_serving.checkpoint import check, convert

pytest.importorskip("vllm")


class Break(NamedTuple):
    drafter: Path
    where: str  # what the check names
    severity: str = "silent"


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_target(tmp_path_factory.mktemp("target") / "model")


def breaks(folder: Path) -> dict[str, Break]:
    ids = drafters.as_specforge(folder / "ids", known(1, aux_layers=(2, 5, 11)), explicit=True)
    label = drafters.edit(drafters.as_eagle(folder / "label", known(2)), architectures=["Qwen3ForCausalLM"], model_type="qwen3",
                          num_hidden_layers=1, head_dim=8)  # fmt: skip
    depth = drafters.edit(drafters.as_eagle(folder / "depth", known(3)), num_hidden_layers=3)
    layers = folder / "layers"
    convert(
        drafters.as_vllm(folder / "layers-vllm", known(4, num_layers=2)),
        layers,
        to="sglang",
        num_target_layers=drafters.N,
    )
    bias = drafters.as_modelopt(folder / "bias", known(5, fc_bias=True))
    output = drafters.edit(drafters.as_specforge(folder / "output", known(6)), norm_output=True)
    residual = drafters.edit(drafters.as_speculators(folder / "residual", known(7)), norm_before_residual=...)
    whole = drafters.edit(drafters.as_vllm(folder / "norm", known(8, pre_fc_norm="concat")), norm_before_fc=False)
    return {
        "ids": Break(ids, "eagle_aux_hidden_state_layer_ids"),
        "label": Break(label, "architectures"),
        "depth": Break(depth, "num_hidden_layers"),
        "layers": Break(layers, "layers.1.hidden_norm.weight"),
        "bias": Break(bias, "fc.bias"),
        "output": Break(output, "norm_output"),
        "residual": Break(residual, "norm_before_residual"),
        "norm": Break(whole, "input_norm.weight"),
    }


@pytest.fixture(scope="module")
def made(
    target: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Break], dict[tuple[str, str], Path]]:
    folder = tmp_path_factory.mktemp("drafters")
    right = {}
    for i, (name, case) in enumerate(CASES.items()):
        source = case.make(folder / f"source-{i}", case.drafter)
        own = "universal" if "universal" in case.dialects else "vllm"
        for dialect in (own, "speculators"):
            if dialect in case.dialects:
                convert(source, folder / f"{dialect}-{i}", to=dialect, num_target_layers=drafters.N)
                right[name, dialect] = folder / f"{dialect}-{i}"
    return breaks(folder), right


@pytest.fixture(scope="module")
def loaded(
    target: Path, made: tuple[dict[str, Break], dict[tuple[str, str], Path]], tmp_path_factory: pytest.TempPathFactory
) -> dict[object, Loaded]:
    wrong, right = made
    paths = {**{name: b.drafter for name, b in wrong.items()}, **right}
    out = tmp_path_factory.mktemp("loaded") / "out"
    return dict(
        zip(paths, load_all(sys.executable, "loaded_by_vllm.py", target, list(paths.values()), out), strict=True)
    )


def test_every_conversion_arrives_whole(
    made: tuple[dict[str, Break], dict[tuple[str, str], Path]], loaded: dict[object, Loaded]
) -> None:
    assert len(made[1]) > 40
    for key in made[1]:
        name, found, config = key[0], loaded[key], CASES[key[0]].drafter.config
        assert "error" not in found, (key, found["error"])
        cast = torch.bfloat16 if name == "bf16" else torch.float32
        wrong = differing(found, CASES[name].drafter, "input_layernorm", cast)
        assert not wrong, (key, wrong)
        assert found["own_head"] == (name != "no head"), key
        assert found["own_embedding"] == config.own_embedding, key
        assert found["aux_v1"] == found["aux_v2"] == config.aux_layers, key
        assert found["norm_before_residual"] == config.norm_before_residual, key
        assert found["norm_output"] == config.norm_output, key
        assert (found["norm_before_fc"], found["fc_norm"]) == (
            config.norms_concatenation,
            config.norms_features,
        ), key
        assert (found["class"] == "Eagle3Qwen3ForCausalLM") == config.qk_norm, key
        assert found["rope"]["rope_theta"] == config.rope.theta, key
        ids, map_ = CASES[name].drafter.ids, found["parameters"].get("draft_id_to_target_id")
        assert (map_ is None) == (ids is None), key
        assert ids is None or map_ is None or torch.equal(map_ + torch.arange(len(map_)), ids), key


def test_the_silent_breaks_are_silent_and_named(
    made: tuple[dict[str, Break], dict[tuple[str, str], Path]], loaded: dict[object, Loaded]
) -> None:
    """vLLM loads each of them without a word, and wrongly."""
    assert not [name for name in made[0] if "error" in loaded[name]]

    def parameter(name: str, which: str) -> torch.Tensor:
        found: torch.Tensor = loaded[name]["parameters"][which]
        return found

    def ones(tensor: torch.Tensor) -> bool:
        return torch.equal(tensor, torch.ones_like(tensor))

    assert loaded["ids"]["aux_v1"] == (1, 4, 10)  # one layer too early
    assert loaded["ids"]["aux_v2"] is None  # and the defaults
    assert loaded["label"]["class"] == "Eagle3Qwen3ForCausalLM"
    assert ones(parameter("label", "model.layers.0.self_attn.q_norm.weight"))  # applied, and never trained
    assert ones(parameter("depth", "model.layers.2.input_layernorm.weight"))  # a layer that nobody trained
    assert ones(parameter("layers", "model.layers.1.input_layernorm.weight"))
    assert "model.fc.bias" not in loaded["bias"]["parameters"]
    assert loaded["output"]["norm_output"] is True  # SpecForge fed the pre-norm state back until September 2026
    assert loaded["residual"]["norm_before_residual"] is True  # speculators' own default is False
    assert "model.input_norm.weight" not in loaded["norm"]["parameters"]


@pytest.mark.parametrize("name", ["ids", "label", "depth", "layers", "bias", "output", "residual", "norm"])
def test_the_check_names_it_before(name: str, made: tuple[dict[str, Break], dict[tuple[str, str], Path]]) -> None:
    wrong = made[0][name]
    found = check(wrong.drafter, engine="vllm", num_target_layers=drafters.N, norm_output="final-norm")
    named = [f for f in found if f.engine == "vllm" and f.severity == wrong.severity and f.where == wrong.where]
    assert named and named[0].fix, [f.line() for f in found]


def test_the_check_finds_nothing_in_a_conversion(made: tuple[dict[str, Break], dict[tuple[str, str], Path]]) -> None:
    for key, drafter in made[1].items():
        assert not [f.line() for f in check(drafter, engine="vllm", num_target_layers=drafters.N) if f.breaks], key
