"""The embedded target: made once, checked always, remade where it was damaged, and never over somebody's files."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from eagle3_serving.cli.main import main
from eagle3_serving.errors import CheckError, InputError
from eagle3_serving.targets import smollm2
from eagle3_serving.targets.cache import cache_directory
from eagle3_serving.targets.package_file import PackageFile
from eagle3_serving.targets.smollm2 import TENSORS_SHA256, WEIGHTS, fetch_target, tensors_sha256
from tests.json_contract import contract


class Conversions:
    """Stands in for the slow conversion: copies a small source, and counts."""

    def __init__(self, source: Path) -> None:
        self.source = source
        self.count = 0

    def __call__(self, gguf: Path, out: Path) -> None:
        self.count += 1
        shutil.copytree(self.source, out)


@pytest.fixture
def conversions(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Conversions:
    source = tmp_path_factory.mktemp("converted")
    save_file({"a": torch.arange(8.0), "b": torch.ones(2, 3)}, source / WEIGHTS)
    for name in ("config.json", "tokenizer.json"):
        (source / name).write_text('{"some": "json"}\n')
    fake = Conversions(source)
    monkeypatch.setattr(smollm2, "_convert", fake)
    monkeypatch.setattr(smollm2, "TENSORS_SHA256", tensors_sha256(source / WEIGHTS))
    monkeypatch.setattr(PackageFile, "locate", lambda self, scratch: scratch / "unused.gguf")
    return fake


def test_the_target_is_the_one_that_was_measured(target_dir: Path) -> None:
    assert tensors_sha256(target_dir / WEIGHTS) == TENSORS_SHA256
    with safe_open(target_dir / WEIGHTS, framework="pt") as file:
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.bfloat16}  # noqa: SIM118
    config = json.loads((target_dir / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["rms_norm_eps"] == 1e-5
    assert config["rope_parameters"]["rope_theta"] == 100000.0
    assert config["tie_word_embeddings"] is True
    generation = json.loads((target_dir / "generation_config.json").read_text())
    assert [generation[f"{kind}_token_id"] for kind in ("bos", "eos", "pad")] == [1, 2, 2]


def test_the_tokenizer_knows_how_to_chat(target_dir: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(target_dir, local_files_only=True)
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    assert text.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") == 2


def test_a_second_call_makes_nothing(conversions: Conversions, tmp_path: Path) -> None:
    place = tmp_path / "models" / "small"
    assert fetch_target(place) == fetch_target(place) == place
    assert conversions.count == 1
    assert [path.name for path in place.parent.iterdir()] == ["small"]  # nothing is left beside it


def cut(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)


def flip_a_byte(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(-1, 2)
        last = file.read(1)[0]
        file.seek(-1, 2)
        file.write(bytes([last ^ 1]))


@pytest.mark.parametrize("name", [WEIGHTS, "tokenizer.json", "config.json"])
@pytest.mark.parametrize("damage", [cut, flip_a_byte, Path.unlink])
def test_a_damaged_target_is_remade(
    name: str, damage: Callable[[Path], None], conversions: Conversions, tmp_path: Path
) -> None:
    place = fetch_target(tmp_path / "small")
    damage(place / name)
    fetch_target(place)
    assert conversions.count == 2
    assert (place / name).read_bytes() == (conversions.source / name).read_bytes()


def test_a_directory_with_other_files_is_left_alone(conversions: Conversions, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="thesis"):
        fetch_target(tmp_path)
    assert conversions.count == 0
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_a_conversion_that_went_wrong_leaves_nothing(conversions: Conversions, tmp_path: Path) -> None:
    conversions.source = tmp_path / "wrong"
    conversions.source.mkdir()
    (conversions.source / WEIGHTS).write_bytes(b"not safetensors")
    with pytest.raises(CheckError, match="tensor hash"):
        fetch_target(tmp_path / "place" / "small")
    assert list((tmp_path / "place").iterdir()) == []


def test_the_command_prints_the_directory_last(
    conversions: Conversions, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "small"
    assert main(["fetch-target", "--dir", str(place)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(place)
    assert main(["fetch-target", "--dir", str(place), "--json"]) == 0
    assert contract("fetch-target", capsys.readouterr().out)["directory"] == str(place)


def test_a_place_that_is_a_file_is_one_line_and_exit_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        assert main(["fetch-target", "--dir", str(place)]) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1


def test_the_cache_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("EAGLE3_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_directory() == tmp_path / "eagle3-serving"
    monkeypatch.setenv("EAGLE3_CACHE", str(tmp_path / "own"))
    assert cache_directory() == tmp_path / "own"
