"""A target: made once, checked always, remade where it was damaged, and never over somebody's files."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from eagle3_serving.cli import fetch_target as command
from eagle3_serving.cli.main import main
from eagle3_serving.errors import CheckError, InputError
from eagle3_serving.targets.cache import cache_directory
from eagle3_serving.targets.fetch import WEIGHTS, Recipe, tensors_sha256
from eagle3_serving.targets.known import RECIPES
from tests.json_contract import contract


class Conversions:
    """Stands in for the slow conversion: copies a small source, and counts."""

    def __init__(self, source: Path) -> None:
        self.source = source
        self.count = 0
        digest = tensors_sha256(source / WEIGHTS)
        self.recipe = Recipe(
            "small", "A small one", f"no terms {id(self)}", digest, lambda scratch: scratch / "unused", self
        )

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
    for name in RECIPES:
        monkeypatch.setitem(RECIPES, name, fake.recipe)
    return fake


def test_a_second_call_makes_nothing(conversions: Conversions, tmp_path: Path) -> None:
    place = tmp_path / "models" / "small"
    assert conversions.recipe.fetch(place) == conversions.recipe.fetch(place) == place
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
    place = conversions.recipe.fetch(tmp_path / "small")
    damage(place / name)
    conversions.recipe.fetch(place)
    assert conversions.count == 2
    assert (place / name).read_bytes() == (conversions.source / name).read_bytes()


def test_a_directory_with_other_files_is_left_alone(conversions: Conversions, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="thesis"):
        conversions.recipe.fetch(tmp_path)
    assert conversions.count == 0
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_a_conversion_that_went_wrong_leaves_nothing(conversions: Conversions, tmp_path: Path) -> None:
    conversions.source = tmp_path / "wrong"
    conversions.source.mkdir()
    (conversions.source / WEIGHTS).write_bytes(b"not safetensors")
    with pytest.raises(CheckError, match="tensor hash"):
        conversions.recipe.fetch(tmp_path / "place" / "small")
    assert list((tmp_path / "place").iterdir()) == []


def test_the_command_prints_the_directory_last(
    conversions: Conversions, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "small"
    assert main(["fetch-target", "--dir", str(place)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(place)
    assert main(["fetch-target", "--dir", str(place), "--json"]) == 0
    assert contract("fetch-target", capsys.readouterr().out)["directory"] == str(place)


def test_a_target_is_named_and_its_terms_are_said(
    conversions: Conversions, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tuple(RECIPES) == command.NAMES
    assert main(["fetch-target", "gemma3-270m", "--dir", str(tmp_path / "small")]) == 0
    assert capsys.readouterr().err.count("A small one: no terms") == 1
    with pytest.raises(SystemExit):
        main(["fetch-target", "gemma4"])
    assert "'gemma4' is none of smollm2-135m-instruct, gemma3-270m" in capsys.readouterr().err


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
