"""What a checkpoint means: each fault's kind with the right value, and what is not known is called so."""

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import drafters
import pytest
import torch
from drafters import N, known
from safetensors.torch import load_file, save_file

from eagle3_serving.checkpoint import Finding, check, convert
from eagle3_serving.checkpoint import keys as known_keys
from eagle3_serving.checkpoint.findings import verdict
from eagle3_serving.checkpoint.read import read
from eagle3_serving.checkpoint.source import open_source
from eagle3_serving.cli.main import main
from eagle3_serving.errors import CheckError, InputError
from eagle3_serving.serve.servable import servable
from eagle3_serving.serve.sglang import sglang_python


def config_of(folder: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return config


def with_tensors(folder: Path, drop: str = "", **changes: torch.Tensor) -> Path:
    path = folder / "model.safetensors"
    tensors = {n: t for n, t in load_file(path).items() if not drop or drop not in n}
    save_file({**tensors, **changes}, path)
    return folder


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


# embeddings


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


# verdicts


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
    spoken = json.loads(capsys.readouterr().out.splitlines()[-1])
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
    drafters.edit(folder, architectures=["PEagleDraftModel"], mask_token_id=7)
    (found,) = said(check(folder, engine="vllm", num_target_layers=N), "mask_hidden")
    assert found.unjudged and '"parallel_drafting": true' in found.what
    served = servable(folder, "vllm")
    assert served.parallel and not served.unjudged
    assert verdict(check(drafters.edit(folder, mask_token_id=...), engine="vllm", num_target_layers=N)) is False


def test_fewer_positions_than_the_target_serves_is_a_warning(tmp_path: Path) -> None:
    target = drafters.target_directory(tmp_path / "target")
    folder = drafters.as_specforge(tmp_path / "d", known())
    for positions, warned in ((512, False), (4096, True)):
        drafters.edit(target, max_position_embeddings=positions)
        found = check(folder, target=target)
        assert verdict(found) is True and bool(said(found, "max_position_embeddings")) is warned


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
