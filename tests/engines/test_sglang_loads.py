"""SGLang's own configuration and loader: what was converted arrives whole; what breaks in silence was named before."""

from pathlib import Path
from typing import NamedTuple

import drafters
import pytest
import torch
from cases import CASES
from drafters import known
from loaders import Loaded, differing, load_all, tiny_target
from safetensors.torch import load_file, save_file

from eagle3_serving.checkpoint import check, convert
from eagle3_serving.errors import InputError
from eagle3_serving.serve.sglang import sglang_python


class Break(NamedTuple):
    drafter: Path
    where: str  # what the check names
    severity: str = "silent"


@pytest.fixture(scope="module")
def python() -> str:
    try:
        return str(sglang_python())
    except InputError as error:
        pytest.skip(str(error))


def edited_tensors(folder: Path, drop: str = "", **changes: torch.Tensor) -> Path:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors.pop(drop, None)
    save_file({**tensors, **changes}, path)
    return folder


def as_sglang(folder: Path, drafter: drafters.Known) -> Path:
    convert(
        drafters.as_vllm(folder.with_name(f"{folder.name}-vllm"), drafter),
        folder,
        to="sglang",
        num_target_layers=drafters.N,
    )
    return folder


def labelled(folder: Path, drafter: drafters.Known) -> Path:
    """vLLM's, under the label that SGLang knows."""
    return drafters.edit(drafters.as_vllm(folder, drafter), architectures=["LlamaForCausalLMEagle3"])


def breaks(folder: Path) -> dict[str, Break]:
    return {
        "ids": Break(labelled(folder / "ids", known(1, aux_layers=(2, 5, 11))), "eagle_aux_hidden_state_layer_ids"),
        "tied": Break(
            drafters.edit(as_sglang(folder / "tied", known(2)), tie_word_embeddings=True), "tie_word_embeddings"
        ),
        "layers": Break(labelled(folder / "layers", known(3, num_layers=2)), "layers.1.input_layernorm.weight"),
        "absolute": Break(edited_tensors(as_sglang(folder / "absolute", known(4)), d2t=drafters.IDS), "d2t"),
        "head": Break(edited_tensors(as_sglang(folder / "head", known(5)), drop="lm_head.weight"), "lm_head.weight"),
        "norm": Break(
            drafters.edit(as_sglang(folder / "norm", known(6, pre_fc_norm="per_aux")), fc_norm=False),
            "fc_norm.0.weight",
        ),
        "residual": Break(labelled(folder / "residual", known(7, norm_before_residual=True)), "norm_before_residual"),
        "bias": Break(labelled(folder / "bias", known(8, attention_bias=True)), "layers.0.self_attn.q_proj.bias"),
        "output": Break(
            drafters.edit(drafters.as_specforge(folder / "output", known(9)), norm_output=True), "norm_output"
        ),
    }


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Break], dict[tuple[str, str], Path]]:
    folder = tmp_path_factory.mktemp("drafters")
    right = {}
    for i, (name, case) in enumerate(CASES.items()):
        source = case.make(folder / f"source-{i}", case.drafter)
        for dialect in ("sglang", "universal"):
            if dialect in case.dialects:
                convert(source, folder / f"{dialect}-{i}", to=dialect, num_target_layers=drafters.N)
                right[name, dialect] = folder / f"{dialect}-{i}"
    return breaks(folder), right


@pytest.fixture(scope="module")
def loaded(
    python: str, made: tuple[dict[str, Break], dict[tuple[str, str], Path]], tmp_path_factory: pytest.TempPathFactory
) -> dict[object, Loaded]:
    wrong, right = made
    folder = tmp_path_factory.mktemp("loaded")
    paths = {**{name: b.drafter for name, b in wrong.items()}, **right}
    found = load_all(
        python, "loaded_by_sglang.py", tiny_target(folder / "target"), list(paths.values()), folder / "out"
    )
    return dict(zip(paths, found, strict=True))


def test_every_conversion_arrives_whole(
    made: tuple[dict[str, Break], dict[tuple[str, str], Path]], loaded: dict[object, Loaded]
) -> None:
    assert len(made[1]) > 35
    for key in made[1]:
        name, found, config = key[0], loaded[key], CASES[key[0]].drafter.config
        assert "error" not in found, (key, found["error"])
        cast = torch.bfloat16 if name == "bf16" else torch.float32
        wrong = differing(found, CASES[name].drafter, "hidden_norm", cast)
        assert not wrong, (key, wrong)
        assert found["head_from_target"] == (name == "no head") and not found["tied"], key
        assert found["aux"] == config.aux_layers, key
        assert found["norm_output"] == config.norm_output, key
        assert (found["norm_before_fc"], found["fc_norm"]) == (
            config.norms_concatenation,
            config.norms_features,
        ), key
        ids = CASES[name].drafter.ids
        assert (found["target_ids"] is None) == (ids is None), key
        assert ids is None or torch.equal(found["target_ids"], ids), key
        if config.fc_bias:  # the key that SGLang needs for it gives o_proj a bias too
            bias = found["parameters"]["model.layers.0.self_attn.o_proj.bias"]
            assert torch.equal(bias, torch.zeros_like(bias))


def test_the_silent_breaks_are_silent_and_named(
    made: tuple[dict[str, Break], dict[tuple[str, str], Path]], loaded: dict[object, Loaded]
) -> None:
    """SGLang loads each of them without a word, and wrongly."""
    assert not [(name, loaded[name]["error"]) for name in made[0] if "error" in loaded[name]]
    norm = loaded["layers"]["parameters"]["model.layers.1.hidden_norm.weight"]
    assert loaded["ids"]["aux"] == (2, 6, 9)  # the defaults
    assert loaded["tied"]["tied"] is True  # the trained head is nowhere
    assert torch.equal(norm, torch.ones_like(norm))
    assert int(loaded["absolute"]["target_ids"].max()) >= drafters.VOCAB
    assert "lm_head.weight" in differing(loaded["head"], known(5), "hidden_norm")  # whatever the memory held
    assert "model.fc_norm.0.weight" not in loaded["norm"]["parameters"]
    assert not differing(loaded["residual"], known(7), "hidden_norm")  # every tensor is there; the flag is not read
    assert "model.layers.0.self_attn.qkv_proj.bias" not in loaded["bias"]["parameters"]
    assert loaded["output"]["norm_output"] is True  # SpecForge fed the pre-norm state back until September 2026


@pytest.mark.parametrize("name", ["ids", "tied", "layers", "absolute", "head", "norm", "residual", "bias", "output"])
def test_the_check_names_it_before(name: str, made: tuple[dict[str, Break], dict[tuple[str, str], Path]]) -> None:
    wrong = made[0][name]
    found = check(wrong.drafter, engine="sglang", num_target_layers=drafters.N, norm_output="final-norm")
    named = [f for f in found if f.engine == "sglang" and f.severity == wrong.severity and f.where == wrong.where]
    assert named and named[0].fix, [f.line() for f in found]


def test_the_check_finds_nothing_in_a_conversion(made: tuple[dict[str, Break], dict[tuple[str, str], Path]]) -> None:
    for key, drafter in made[1].items():
        assert not [f.line() for f in check(drafter, engine="sglang", num_target_layers=drafters.N) if f.breaks], key
