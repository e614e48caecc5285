"""Strict loading: every dialect's names arrive, and what is not right is named."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from eagle3_serving.checkpoint.load import load_drafter
from eagle3_serving.checkpoint.names import canonical_name, eagle_name
from eagle3_serving.checkpoint.save import save_drafter
from eagle3_serving.drafter import Drafter, DrafterConfig
from eagle3_serving.errors import InputError

CONFIG = DrafterConfig(
    hidden_size=16,
    intermediate_size=24,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=4,
    vocab_size=20,
    draft_vocab_size=8,
    target_hidden_size=16,
    aux_layers=(2, 5, 8),
)
IDS = torch.tensor([0, 1, 4, 7, 9, 11, 15, 19])
EMBEDDING = torch.arange(320.0).view(20, 16)
Tensors = dict[str, torch.Tensor]


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    drafter = Drafter(CONFIG, IDS)
    for parameter in drafter.parameters():
        torch.nn.init.normal_(parameter)
    save_drafter(drafter, tmp_path / "drafter", torch.float32)
    return tmp_path / "drafter"


def rewrite(directory: Path, change: Callable[[Tensors], Tensors]) -> None:
    path = directory / "model.safetensors"
    save_file({name: t.contiguous() for name, t in change(load_file(path)).items()}, path)


def edit_config(directory: Path, **changes: object) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def load(directory: Path) -> Drafter:
    return load_drafter(directory, target_embedding=EMBEDDING, num_target_layers=12)


def test_what_was_saved_comes_back(saved: Path) -> None:
    drafter = load(saved)
    assert drafter.config == DrafterConfig(**{**CONFIG.__dict__, "own_embedding": False})
    tensors = load_file(saved / "model.safetensors")
    for name, parameter in drafter.named_parameters():
        expected = EMBEDDING if name == "embed_tokens.weight" else tensors[eagle_name(name)]
        assert torch.equal(parameter, expected), name
    assert torch.equal(drafter.vocabulary.target_ids, IDS)
    assert sorted(path.name for path in saved.parent.iterdir()) == ["drafter"]  # nothing half-written beside


@pytest.mark.parametrize("spell", [lambda n: n.replace("midlayer.", "layers.0."), lambda n: f"model.{n}"])
def test_other_dialects_names_load_the_same(saved: Path, spell: Callable[[str], str]) -> None:
    before = load(saved).state_dict()
    rewrite(saved, lambda tensors: {spell(name): t for name, t in tensors.items()})
    after = load(saved).state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_names_go_there_and_back() -> None:
    for name in ("midlayer.self_attn.q_proj.weight", "fc.weight", "norm.weight", "input_norm.weight", "lm_head.weight"):
        assert eagle_name(canonical_name(name)) == name
    assert canonical_name("layers.1.input_layernorm.weight") == "layers.1.hidden_norm.weight"
    assert canonical_name("aux_norm_mid.weight") == "fusion.fc_norm.1.weight"


def without(name: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {key: t for key, t in tensors.items() if key != name}


def replaced(name: str, tensor: torch.Tensor) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {**tensors, name: tensor}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (without("midlayer.mlp.up_proj.weight"), "layers.0.mlp.up_proj.weight is missing"),
        (without("lm_head.weight"), "lm_head.weight is missing"),
        (without("fc.weight"), "fc.weight is missing"),
        (without("d2t"), "no map `d2t`"),
        (replaced("extra.weight", torch.ones(2)), "unexpected tensor extra.weight"),
        (replaced("norm.weight", torch.ones(3)), r"norm.weight has shape \(3,\)"),
        (replaced("d2t", IDS + 20), "d2t maps outside"),
        (replaced("t2d", torch.ones(20, dtype=torch.bool)), "t2d and d2t"),
    ],
)
def test_a_tensor_that_is_not_right_is_named(saved: Path, change: Callable[[Tensors], Tensors], said: str) -> None:
    rewrite(saved, change)
    with pytest.raises(InputError, match=said) as error:
        load(saved)
    assert "\n" not in str(error.value)


def test_an_embedding_must_come_from_somewhere(saved: Path) -> None:
    with pytest.raises(InputError, match=r"embed_tokens.weight is missing"):
        load_drafter(saved)


def test_a_shard_outside_the_folder_is_refused(saved: Path) -> None:
    index = {"weight_map": {"fc.weight": "../elsewhere.safetensors"}}
    (saved / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match="leaves the directory"):
        load(saved)


def test_a_truncated_file_is_one_line(saved: Path) -> None:
    path = saved / "model.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InputError, match="not a readable safetensors file"):
        load(saved)


@pytest.mark.parametrize(
    ("nested", "boundaries"), [([1, 5, 8], (2, 6, 9)), ([2, 6, 9], (2, 6, 9)), ([1, 4, 7], (2, 5, 8))]
)
def test_nested_layer_ids_are_decoded_with_the_targets_depth(
    saved: Path, nested: list[int], boundaries: tuple[int, ...]
) -> None:
    edit_config(saved, eagle_aux_hidden_state_layer_ids=None, eagle_config={"eagle_aux_hidden_state_layer_ids": nested})
    assert load(saved).config.aux_layers == boundaries


def test_nested_layer_ids_that_could_mean_either_are_refused(saved: Path) -> None:
    ids = {"eagle_aux_hidden_state_layer_ids": [3, 5, 8]}
    edit_config(saved, eagle_aux_hidden_state_layer_ids=None, eagle_config=ids)
    with pytest.raises(InputError, match="boundaries or layer outputs"):
        load(saved)
