"""A drafter that an engine would get wrong in silence is converted, one that cannot be mended is refused."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from eagle3_serving.errors import CheckError
from eagle3_serving.serve.servable import servable


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EAGLE3_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def copy(drafter_dir: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(drafter_dir, tmp_path / "drafter"))


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_what_ships_is_served_as_it_is(drafter_dir: Path, engine: str) -> None:
    found = servable(drafter_dir, engine)
    assert found.directory == drafter_dir and found.mended is None


def test_ids_that_sglang_would_shift_are_mended_in_a_copy_made_once(copy: Path) -> None:
    raw = json.loads((copy / "config.json").read_text())
    del raw["draft_vocab_size"]  # SGLang fails without it
    (copy / "config.json").write_text(json.dumps(raw))
    found = servable(copy, "sglang")
    assert found.mended is not None and found.directory != copy
    made = (found.directory / "config.json").stat().st_mtime_ns
    assert json.loads((found.directory / "config.json").read_text())["draft_vocab_size"] == 8192
    assert servable(copy, "sglang").directory == found.directory
    assert (found.directory / "config.json").stat().st_mtime_ns == made


def test_a_changed_drafter_is_another(copy: Path) -> None:
    raw = json.loads((copy / "config.json").read_text())
    del raw["draft_vocab_size"]
    (copy / "config.json").write_text(json.dumps(raw))
    first = servable(copy, "sglang").directory
    (copy / "config.json").write_text(json.dumps(raw, indent=3))
    assert servable(copy, "sglang").directory != first


def test_a_renamed_tensor_cannot_be_mended(copy: Path) -> None:
    tensors: dict[str, torch.Tensor] = load_file(copy / "model.safetensors")
    tensors["midlayer.mlp.downward.weight"] = tensors.pop("midlayer.mlp.down_proj.weight")
    save_file(tensors, copy / "model.safetensors")
    with pytest.raises(CheckError, match="down_proj"):
        servable(copy, "sglang")
