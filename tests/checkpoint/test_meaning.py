"""What a checkpoint means: each fault's kind with the right value, and what is not known is called so."""

import importlib.util
import re
from pathlib import Path
from typing import Any

import drafters
import pytest
from drafters import N, config_of, known

from eagle3_serving.checkpoint import Finding, check, convert
from eagle3_serving.checkpoint import keys as known_keys
from eagle3_serving.checkpoint.findings import verdict
from eagle3_serving.checkpoint.read import read
from eagle3_serving.checkpoint.source import open_source
from eagle3_serving.errors import CheckError, InputError
from eagle3_serving.serve.sglang import sglang_python


def said(found: list[Finding], where: str) -> list[Finding]:
    return [finding for finding in found if finding.where == where]


# norm_output: two trainers, two meanings


@pytest.mark.parametrize(
    ("norms", "keys", "value"),
    [
        ("none", {"_torchspec_version": "0.1.0"}, True),
        ("per_aux", {"_torchspec_version": "0.1.0"}, True),
        ("per_aux", {}, True),
        ("per_aux", {"num_aux_hidden_states": 3}, True),
        ("none", {}, None),
        ("none", {"num_aux_hidden_states": 3}, None),
        ("none", {"norm_before_residual": False}, None),
        ("none", {"eagle_aux_hidden_state_layer_ids": [2, 6, 9]}, None),
        ("none", {"norm_output": False}, False),
        ("none", {"norm_output": ...}, False),
    ],
)
def test_norm_output_is_feedback_or_is_asked(
    tmp_path: Path, norms: Any, keys: dict[str, Any], value: bool | None
) -> None:
    folder = drafters.as_specforge(tmp_path / "d", known(pre_fc_norm=norms))
    drafters.edit(folder, **{"norm_output": True, **keys})
    found = check(folder, num_target_layers=N)
    assert verdict(found) is (None if value is None else True)
    if value is not None:
        convert(folder, tmp_path / "v", to="vllm", num_target_layers=N)
        assert config_of(tmp_path / "v")["norm_output"] is value
        return
    with pytest.raises(CheckError, match="--norm-output feedback .* or final-norm"):
        convert(folder, tmp_path / "v", to="vllm", num_target_layers=N)
    for answer, meant in (("feedback", True), ("final-norm", False)):
        convert(folder, tmp_path / answer, to="vllm", num_target_layers=N, norm_output=answer)  # type: ignore[arg-type]
        assert config_of(tmp_path / answer)["norm_output"] is meant


@pytest.mark.parametrize("make", [drafters.as_vllm, drafters.as_speculators])
def test_norm_output_has_one_meaning_where_vllm_reads_it(tmp_path: Path, make: Any) -> None:
    assert read(open_source(make(tmp_path / "d", known(norm_output=True)))).config.norm_output


# rotary embedding, activations, keys


SETS = {"full_attention": {"rope_theta": 1e6, "rope_type": "default"},
        "sliding_attention": {"rope_theta": 1e4, "rope_type": "default"}}  # fmt: skip


@pytest.mark.parametrize(
    ("keys", "theta", "window"),
    [
        ({}, 1e6, None),
        ({"layer_types": ["full_attention"]}, 1e6, None),
        ({"layer_types": ["sliding_attention"], "sliding_window": 256}, 1e4, 256),
    ],
)
def test_rope_by_kind_of_layer_is_the_drafters_own_kinds(
    tmp_path: Path, keys: dict[str, Any], theta: float, window: int | None
) -> None:
    folder = drafters.edit(drafters.as_vllm(tmp_path / "d", known()), rope_theta=..., rope_parameters=SETS, **keys)
    meant = read(open_source(folder)).config
    assert (meant.rope.theta, meant.sliding_window) == (theta, window)
    found = check(folder, num_target_layers=N)  # neither engine's Llama can be made of them
    assert {f.engine for f in said(found, "rope_parameters") if f.breaks} == {"vllm", "sglang"}
    convert(folder, tmp_path / "u", to="universal", num_target_layers=N)
    assert config_of(tmp_path / "u")["rope_parameters"] == {"rope_theta": theta, "rope_type": "default"}


@pytest.mark.parametrize("place", ["top", "inside", "rotary_pct"])
def test_a_part_of_each_head_is_rotated_wherever_it_is_said(tmp_path: Path, place: str) -> None:
    inside = {"rope_theta": 5000.0, "rope_type": "default", "partial_rotary_factor": 0.25}
    keys = {
        "top": {"partial_rotary_factor": 0.25},
        "rotary_pct": {"rotary_pct": 0.25},
        "inside": {"rope_parameters": inside},
    }
    folder = drafters.edit(drafters.as_vllm(tmp_path / "d", known(head_dim=16)), **keys[place])
    assert read(open_source(folder)).config.rope.partial == 0.25
    convert(folder, tmp_path / "u", to="universal", num_target_layers=N)
    written = config_of(tmp_path / "u")
    assert written["partial_rotary_factor"] == written["rope_parameters"]["partial_rotary_factor"] == 0.25
    engines = {f.engine for f in check(folder, num_target_layers=N) if f.where == "rope_parameters" and f.breaks}
    labelled = drafters.edit(folder, architectures=["LlamaForCausalLMEagle3"])
    engines |= {f.engine for f in check(labelled, num_target_layers=N) if f.where == "rope_parameters" and f.breaks}
    assert engines == (set() if place == "top" else {"sglang"})  # which reads that one key alone
    with pytest.raises(CheckError, match="a part of each head"):
        convert(folder, tmp_path / "e", to="eagle", num_target_layers=N)


@pytest.mark.parametrize(
    ("rope", "unjudged"),
    [
        ({"rope_type": "longrope", "short_factor": [1.0], "long_factor": [1.0]}, True),
        ({"rope_type": "proportional"}, True),
        ({"rope_type": "default", "use_fope": True}, True),
        ({"rope_type": "dynamic", "factor": 2.0, "alpha": 100.0}, True),
        ({"rope_type": 7}, False),
        ({"rope_type": "yarn", "factor": 2.0}, False),
    ],
)
def test_a_rope_that_is_not_computed_is_not_judged(tmp_path: Path, rope: dict[str, Any], unjudged: bool) -> None:
    folder = drafters.edit(drafters.as_vllm(tmp_path / "d", known()), rope_scaling=rope)
    assert verdict(check(folder, engine="vllm", num_target_layers=N)) is (None if unjudged else False)
    with pytest.raises(CheckError, match="rope"):
        convert(folder, tmp_path / "v", to="vllm", num_target_layers=N)


@pytest.mark.parametrize("kind", ["mrope", "default"])
def test_positions_of_images_are_kept_and_not_judged(tmp_path: Path, kind: str) -> None:
    section = {"mrope_interleaved": True, "mrope_section": [2, 1, 1]}
    folder = drafters.edit(drafters.as_specforge(tmp_path / "d", known()), rope_scaling={"rope_type": kind, **section})
    found = check(folder, num_target_layers=N)
    assert verdict(found) is None and said(found, "rope_parameters.mrope_section")
    convert(folder, tmp_path / "u", to="universal", num_target_layers=N)
    expected = {"rope_theta": 5000.0, "rope_type": "default", **section}
    assert config_of(tmp_path / "u")["rope_parameters"] == expected


def test_dynamic_rope_is_another_in_sglang(tmp_path: Path) -> None:
    folder = drafters.edit(
        drafters.as_specforge(tmp_path / "d", known()), rope_scaling={"type": "dynamic", "factor": 2.0}
    )
    assert verdict(check(folder, engine="vllm", num_target_layers=N)) is True
    assert verdict(check(folder, engine="sglang", num_target_layers=N)) is False
    with pytest.raises(CheckError, match="dynamic"):
        convert(folder, tmp_path / "s", to="sglang", num_target_layers=N)


@pytest.mark.parametrize(
    ("keys", "value", "ok"),
    [
        ({"hidden_act": ..., "hidden_activation": "gelu_pytorch_tanh"}, "gelu_pytorch_tanh", False),
        ({"hidden_act": "gelu"}, "gelu", False),
        ({"hidden_activation": "gelu_pytorch_tanh"}, "silu", None),
        ({"hidden_activation": "silu"}, "silu", True),
    ],
)
def test_an_activation_is_computed_or_refused(
    tmp_path: Path, keys: dict[str, Any], value: str, ok: bool | None
) -> None:
    folder = drafters.edit(drafters.as_specforge(tmp_path / "d", known()), **keys)
    assert read(open_source(folder)).config.hidden_act == value
    for engine in ("vllm", "sglang"):
        assert verdict(check(folder, engine=engine, num_target_layers=N)) is ok
    if ok is False:
        for to in ("vllm", "sglang", "universal", "speculators"):
            with pytest.raises(CheckError, match="silu alone"):
                convert(folder, tmp_path / to, to=to, num_target_layers=N)
        convert(folder, tmp_path / "e", to="eagle", num_target_layers=N)
        assert config_of(tmp_path / "e")["hidden_act"] == value


@pytest.mark.parametrize(
    ("keys", "ok"),
    [
        ({"logit_scale": 0.5}, None),
        ({"logit_scale": 1.0}, True),
        ({"final_logit_softcapping": 30.0}, None),
        ({"final_logit_softcapping": None}, True),
        ({"is_causal": False}, None),
        ({"rope_is_neox_style": False}, None),
        ({"rope_is_neox_style": True}, True),
        ({"some_residual_multiplier": 0.2}, None),
        ({"eagle_config": {"use_last_layernorm": False}}, None),
        ({"eagle_config": {"use_last_layernorm": True}}, True),
        ({"my_note": "x", "image_token_id": 3, "use_cache": True, "attention_dropout": 0.0}, True),
        ({"model_type": "gpt_oss"}, None),
        ({"model_type": "mistral", "sliding_window": 4096}, None),
        ({"use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 0}, True),
    ],
)
def test_a_key_that_changes_arithmetic_is_never_right_unread(
    tmp_path: Path, keys: dict[str, Any], ok: bool | None
) -> None:
    folder = drafters.edit(drafters.as_specforge(tmp_path / "d", known()), **keys)
    assert verdict(check(folder, num_target_layers=N)) is ok
    if ok is None and "model_type" not in keys:
        with pytest.raises(CheckError, match="not computed here"):
            convert(folder, tmp_path / "v", to="vllm", num_target_layers=N)


_READS = (r'getattr\(\s*(?:self\.)?(?:\w+\.)*config_?,\s*"(\w+)"', r"\b(?:self\.)?config_?\.([a-z]\w+)", r'eagle_config(?:\.get\(|\[)\s*"(\w+)"')  # fmt: skip


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_every_key_that_an_engines_draft_classes_read_is_known(engine: str) -> None:
    """Read in the installed engine's own sources; an engine that reads one more fails here first."""
    if engine == "vllm":
        spec = importlib.util.find_spec("vllm")
        if spec is None or spec.origin is None:
            pytest.skip("vLLM is not installed")
        names = ("llama_eagle3", "qwen3_eagle3", "llama", "qwen3")
        files = [Path(spec.origin).parent / "model_executor" / "models" / f"{name}.py" for name in names]
    else:
        try:
            (models,) = Path(sglang_python()).parent.parent.glob("lib/python*/site-packages/sglang/srt/models")
        except InputError as error:
            pytest.skip(str(error))
        files = [models / "llama_eagle3.py", models / "llama.py", models.parent / "layers" / "logits_processor.py"]
    found = {
        key for file in files for pattern in _READS for key in re.findall(pattern, file.read_text(encoding="utf-8"))
    }
    assert {"hidden_act", "norm_output"} <= found
    assert not found - known_keys.COMPUTED - known_keys.INERT - known_keys.UNCOMPUTED.keys()


@pytest.mark.parametrize(
    ("entry", "written"),
    [
        ("Linear", ["Linear"]),
        ("re:.*mlp.*", ["re:.*mlp.*"]),
        (r"re:layers\.0\.mlp\..*", ["midlayer.mlp.down_proj", "midlayer.mlp.gate_proj", "midlayer.mlp.up_proj"]),
        ("layers.0.self_attn.o*", ["midlayer.self_attn.o_proj"]),
        ("layers.0.self_attn.q_proj", ["midlayer.self_attn.q_proj"]),
        (r"re:nothing\.here", [r"re:nothing\.here"]),
    ],
)
def test_quantisation_means_the_same_modules_under_their_new_names(
    tmp_path: Path, entry: str, written: list[str]
) -> None:
    folder = drafters.as_vllm(tmp_path / "d", known())
    groups = {"group_0": {"targets": [entry], "weights": {"num_bits": 8}}}
    drafters.edit(
        folder, quantization_config={"quant_method": "compressed-tensors", "config_groups": groups, "ignore": [entry]}
    )
    convert(folder, tmp_path / "u", to="universal", num_target_layers=N)
    found = config_of(tmp_path / "u")["quantization_config"]
    assert found["config_groups"]["group_0"]["targets"] == found["ignore"] == written


@pytest.mark.parametrize("pattern", ["re:(", "re:(a+)+$", "re:(.|.)*x", "re:" + ".*" * 20 + "x"])
def test_a_pattern_that_cannot_be_computed_is_refused(tmp_path: Path, pattern: str) -> None:
    folder = drafters.edit(drafters.as_vllm(tmp_path / "d", known()), quantization_config={"ignore": [pattern]})
    with pytest.raises(CheckError, match="quantization_config: pattern"):
        convert(folder, tmp_path / "u", to="universal", num_target_layers=N)
