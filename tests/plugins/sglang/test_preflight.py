"""What stock SGLang would serve wrongly in silence is mended or refused, in one line."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from eagle3_sglang.preflight import Served, keep_window, servable
from safetensors.torch import load_file, save_file

from eagle3_serving.checkpoint.check import check
from eagle3_serving.errors import CheckError

Change = Callable[[dict[str, object], dict[str, torch.Tensor]], None]


@pytest.fixture
def changed(drafter_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Change], Path]:
    monkeypatch.setenv("EAGLE3_CACHE", str(tmp_path / "cache"))
    servable.cache_clear()

    def make(change: Change) -> Path:
        folder = tmp_path / "drafter"
        folder.mkdir()
        config = json.loads((drafter_dir / "config.json").read_text())
        tensors = load_file(drafter_dir / "model.safetensors")
        change(config, tensors)
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "calibration.json").write_bytes((drafter_dir / "calibration.json").read_bytes())
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        return folder

    return make


def nothing(config: dict[str, object], tensors: dict[str, torch.Tensor]) -> None:
    """As it ships."""


def without_vocabulary_size(config: dict[str, object], tensors: dict[str, torch.Tensor]) -> None:
    del config["draft_vocab_size"]


def ids_in_vllms_convention(config: dict[str, object], tensors: dict[str, torch.Tensor]) -> None:
    # other layers than the defaults, said where vLLM alone reads them
    config["eagle_aux_hidden_state_layer_ids"] = [3, 12, 24]
    del config["eagle_config"]


def renamed(config: dict[str, object], tensors: dict[str, torch.Tensor]) -> None:
    [name] = [name for name in tensors if name.endswith("down_proj.weight")]
    tensors[name.replace("down_proj", "down_projection")] = tensors.pop(name)


def test_a_good_drafter_is_served_from_where_it_is(changed: Callable[[Change], Path], target_dir: Path) -> None:
    folder = changed(nothing)
    assert servable(str(folder), str(target_dir)) == Served(str(folder))


@pytest.mark.parametrize("change", [without_vocabulary_size, ids_in_vllms_convention])
def test_what_a_conversion_mends_is_served_from_the_cache(
    change: Change, changed: Callable[[Change], Path], target_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = changed(change)
    assert any(finding.breaks for finding in check(folder, engine="sglang", target=target_dir))
    with caplog.at_level(logging.WARNING):
        copy = Path(servable(str(folder), str(target_dir)).path)
    assert copy != folder and "proved" in str(copy)
    assert not any(finding.breaks for finding in check(copy, engine="sglang", target=target_dir))
    assert (copy / "calibration.json").is_file()
    assert "its converted copy" in caplog.text
    servable.cache_clear()
    before = (copy / "model.safetensors").stat().st_mtime_ns
    assert servable(str(folder), str(target_dir)).path == str(copy)
    assert (copy / "model.safetensors").stat().st_mtime_ns == before


def test_what_no_conversion_mends_is_refused_in_one_line(changed: Callable[[Change], Path], target_dir: Path) -> None:
    with pytest.raises(CheckError) as refused:
        servable(str(changed(renamed)), str(target_dir))
    text = str(refused.value)
    assert "down_proj" in text and "\n" not in text and "EAGLE3_CHECK=off" in text


def looking_back_a_window(config: dict[str, object], tensors: dict[str, torch.Tensor]) -> None:
    config |= {"sliding_window": 512, "layer_types": ["sliding_attention"]}


def test_a_window_is_told_to_sglang(
    changed: Callable[[Change], Path], target_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = changed(looking_back_a_window)
    with caplog.at_level(logging.INFO):
        assert servable(str(folder), str(target_dir)) == Served(str(folder), 512)
    assert not caplog.messages
    asked = SimpleNamespace(speculative_draft_window_size=None)
    with caplog.at_level(logging.INFO):
        keep_window(asked, 512)
    assert asked.speculative_draft_window_size == 511
    assert caplog.messages == ["eagle3: the drafter looks back 512 tokens: --speculative-draft-window-size 511"]


@pytest.mark.parametrize("asked", [SimpleNamespace(speculative_draft_window_size=64), SimpleNamespace()])
def test_a_window_that_was_asked_for_stays(asked: SimpleNamespace) -> None:
    before = dict(vars(asked))
    keep_window(asked, 512)
    assert vars(asked) == before


def test_a_hub_id_is_sglangs_to_find(target_dir: Path) -> None:
    assert servable("someone/EAGLE3-model", str(target_dir)) == Served("someone/EAGLE3-model")
