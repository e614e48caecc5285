"""What cannot be converted ends in one line that names the tensor, the key or the folder, and leaves nothing."""

import json
from codecs import BOM_UTF8
from pathlib import Path
from typing import Any

import drafters
import pytest
import torch
from drafters import known
from safetensors.torch import load_file, save_file

from eagle3_serving.checkpoint import check, convert
from eagle3_serving.checkpoint.parity import Parity, compare
from eagle3_serving.checkpoint.rewrites import cast
from eagle3_serving.checkpoint.source import in_memory
from eagle3_serving.errors import CheckError, Eagle3Error, InputError

N = drafters.N


def changed(source: Path, **tensors: torch.Tensor) -> Path:
    """The drafter with other tensors; `__` stands for a dot."""
    path = source / "model.safetensors"
    save_file({**load_file(path), **{name.replace("__", "."): t for name, t in tensors.items()}}, path)
    return source


def refusal(source: Path, tmp_path: Path, to: str = "vllm", **options: Any) -> str:
    with pytest.raises(Eagle3Error) as error:
        convert(source, tmp_path / "out", to=to, num_target_layers=N, **options)
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".*"))
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("stored", "value", "to", "better"),
    [
        (torch.bfloat16, 70000.0, "float16", "--dtype bfloat16"),
        (torch.float32, 3.4e38, "float16", "--dtype float32"),  # bfloat16 would round it to infinity
        (torch.float64, 1e300, "float32", "leave --dtype out"),
    ],
)
def test_a_cast_that_makes_infinities_names_the_tensor_and_what_holds_it(
    tmp_path: Path, stored: torch.dtype, value: float, to: str, better: str
) -> None:
    source = drafters.as_eagle(tmp_path / "d", known())
    fc = load_file(source / "model.safetensors")["fc.weight"].to(stored)
    fc[0, 0], fc[1, 5] = value, -value
    said = refusal(changed(source, fc__weight=fc), tmp_path, dtype=to)
    assert (
        "fc.weight" in said and f"{to} holds nothing beyond" in said and "2 of its numbers" in said and better in said
    )
    report = convert(source, tmp_path / "as-it-is", to="vllm", num_target_layers=N, parity=stored != torch.float64)
    assert report.to == "vllm"


def test_a_cast_keeps_every_number_that_has_a_place() -> None:
    edge = torch.tensor([[65504.0, -65504.0, 1e-8]])  # float16's last; the smallest becomes 0, which is rounding
    made = cast({"w": in_memory("w", edge)}, torch.float16, "d")["w"].read()
    assert made.tolist() == [[65504.0, -65504.0, 0.0]]
    with pytest.raises(CheckError, match=r"d: w: float16 holds nothing beyond 65504, and 1 of its numbers"):
        cast({"w": in_memory("w", edge + torch.tensor([[40.0, 0, 0]]))}, torch.float16, "d")["w"].read()


@pytest.mark.parametrize("options", [{}, {"dtype": "bf16", "parity": False}])
@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_what_is_no_number_is_named_wherever_it_stands(
    tmp_path: Path, value: float, options: dict[str, object]
) -> None:
    source = drafters.as_vllm(tmp_path / "d", known(own_embedding=True))
    table = load_file(source / "model.safetensors")["embed_tokens.weight"]
    table[61, 3] = value  # the proof never looks this token up
    kind = "NaN" if value != value else "infinities"
    said = refusal(changed(source, embed_tokens__weight=table), tmp_path, "speculators", **options)
    assert f"embed_tokens.weight: holds 1 {kind}" in said and "eagle3 check" not in said


def test_a_head_size_that_is_not_said_names_its_key(tmp_path: Path) -> None:
    source = drafters.as_eagle(tmp_path / "d", known(head_dim=16))
    drafters.edit(source, head_dim=None)
    said = refusal(source, tmp_path)
    assert "head_dim is missing" in said and "midlayer.self_attn.q_proj.weight has 4 heads of 16" in said
    drafters.edit(source, head_dim=4)
    assert "head_dim is 4" in refusal(source, tmp_path) and "set head_dim to 16" in refusal(source, tmp_path)
    drafters.edit(source, head_dim=16)
    assert convert(source, tmp_path / "out", to="vllm", num_target_layers=N).parity[0].tokens_equal


def test_a_wrong_shape_names_the_keys_behind_it(tmp_path: Path) -> None:
    source = drafters.as_eagle(tmp_path / "d", known())
    drafters.edit(source, intermediate_size=40)
    assert "mend intermediate_size or hidden_size" in refusal(source, tmp_path)


def test_a_negative_id_is_told_as_what_it_is(tmp_path: Path) -> None:
    source = drafters.as_vllm(tmp_path / "d", known())
    drafters.edit(source, eagle_aux_hidden_state_layer_ids=[2, 6, -1])
    said = refusal(source, tmp_path)
    assert (
        "counts from the end" in said
        and "12 is the state behind its last layer" in said
        and "another target" not in said
    )
    drafters.edit(source, eagle_aux_hidden_state_layer_ids=[2, 6, 13])
    assert "for another target" in refusal(source, tmp_path)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.model."])
def test_a_wrappers_prefix_is_read_and_told(tmp_path: Path, prefix: str) -> None:
    source = drafters.as_eagle(tmp_path / "d", known())
    plain = load_file(source / "model.safetensors")
    save_file({prefix + name: tensor for name, tensor in plain.items()}, source / "model.safetensors")
    drafters.edit(source, architectures=["LlamaForCausalLMEagle3"], num_hidden_layers=1)
    for engine in ("vllm", "sglang"):
        (found,) = [finding for finding in check(source, engine=engine, num_target_layers=N) if finding.breaks]
        assert f"`{prefix}`" in found.what and found.fix == f"eagle3-convert --to {engine}"
    convert(source, tmp_path / "out", to="eagle", num_target_layers=N)
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(written[name], tensor) for name, tensor in plain.items())


def test_a_whole_model_is_told_where_it_belongs(tmp_path: Path) -> None:
    names = [f"{at}.{i}.{rest}.weight" for at in ("model.layers", "h") for i in range(3) for rest in ("attn", "mlp")]
    for part in ("model", "h"):  # Llama's names, and GPT-2's, whose config.json has other keys
        tensors = {name: torch.ones(2, 2) for name in names if name.startswith(part)}
        folder = drafters.save(tmp_path / part, {"architectures": ["SomeLM"], "n_head": 4}, tensors)
        (finding,) = check(folder)
        assert finding.breaks and "a whole language model (SomeLM, 3 layers" in finding.what
        assert "give it as --target" in refusal(folder, tmp_path)


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (
            ["pytorch_model.bin", "optimizer.bin", "random_states_0.pkl"],
            "goes on from (optimizer.bin, random_states_0.pkl)",
        ),
        (["state.pt", "log.jsonl", "drafter/config.json"], "there is one in {}/drafter"),
        (["model.safetensors"], "missing beside model.safetensors; take it from where"),
        (["b/config.json", "a/config.json"], "there is one in {}/a (2 in all)"),
        ([], "give the folder that holds config.json"),
    ],
)
def test_a_folder_without_config_says_what_it_is(tmp_path: Path, files: list[str], said: str) -> None:
    folder = tmp_path / "d"
    folder.mkdir()
    for name in files:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"{}")
    assert said.format(folder) in refusal(folder, tmp_path)


def test_shards_that_are_not_all_there_say_which(tmp_path: Path) -> None:
    source = drafters.as_eagle(tmp_path / "d", known())
    tensors = load_file(source / "model.safetensors")
    names = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    whole = (source / "model.safetensors").rename(source / names[0])
    assert "model.safetensors.index.json is missing: there are 1 .safetensors files" in refusal(source, tmp_path)
    where = {name: names[i % 2] for i, name in enumerate(sorted(tensors))}
    (source / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    save_file({name: tensors[name] for name, file in where.items() if file == names[0]}, whole)
    assert f"{names[1]} is missing, and the index beside it names it" in refusal(source, tmp_path)
    save_file({name: tensors[name] for name, file in where.items() if file == names[1]}, source / names[1])
    convert(source, tmp_path / "out", to="vllm", num_target_layers=N)
    single = drafters.as_eagle(tmp_path / "single", known())
    (single / "model.safetensors").rename(single / "model-00001-of-00001.safetensors")
    convert(single, tmp_path / "out2", to="vllm", num_target_layers=N)


def test_a_byte_order_mark_is_read_and_told(tmp_path: Path) -> None:
    source = drafters.as_vllm(tmp_path / "d", known())
    config = source / "config.json"
    convert(source, tmp_path / "plain", to="vllm", num_target_layers=N)
    config.write_bytes(BOM_UTF8 + config.read_bytes())
    convert(source, tmp_path / "marked", to="vllm", num_target_layers=N)
    written = [json.loads((tmp_path / name / "config.json").read_bytes()) for name in ("plain", "marked")]
    assert written[0].pop("eagle3_serving") and written[1].pop("eagle3_serving") and written[0] == written[1]
    found = check(source, engine="vllm", num_target_layers=N)
    assert [f.where for f in found if f.breaks] == ["config.json"] and "byte-order mark" in found[0].what
    config.write_bytes(config.read_text(encoding="utf-8-sig").encode("utf-16"))
    assert "config.json is not UTF-8 text" in refusal(source, tmp_path)


def test_the_second_of_two_conversions_to_one_place_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, out = drafters.as_eagle(tmp_path / "d", known()), tmp_path / "out"

    def meanwhile(*args: Any) -> Parity:
        out.mkdir()
        (out / "config.json").write_text("theirs")
        return compare(*args)

    monkeypatch.setitem(convert.__globals__, "compare", meanwhile)
    with pytest.raises(InputError, match=r"out was made by another process .* remove it, or name another"):
        convert(source, out, to="vllm", num_target_layers=N)
    assert (out / "config.json").read_text() == "theirs" and sorted(p.name for p in tmp_path.iterdir()) == ["d", "out"]


def test_a_place_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    source = drafters.as_eagle(tmp_path / "d", known())
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"out cannot be made: .*file"):
        convert(source, tmp_path / "file" / "out", to="vllm", num_target_layers=N)
