"""The embedded target: made once, checked always."""

from pathlib import Path

from eagle3_serving.targets.smollm2 import TENSORS_SHA256, tensors_sha256


def test_the_target_is_the_one_that_was_measured(target_dir: Path) -> None:
    assert tensors_sha256(target_dir / "model.safetensors") == TENSORS_SHA256
    assert {"config.json", "tokenizer.json", "generation_config.json"} <= {path.name for path in target_dir.iterdir()}


def test_a_damaged_file_has_another_hash(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"not safetensors")
    assert tensors_sha256(tmp_path / "model.safetensors") != TENSORS_SHA256
