"""A prompt as its target takes it: through the chat template, or as it is where there is none."""

import json
import shutil
from pathlib import Path

import pytest

from eagle3_serving.targets.chat import chat_ids, has_chat_template, load_tokenizer


@pytest.fixture
def base(target_dir: Path, tmp_path: Path) -> Path:
    """The tokenizer without its template."""
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(target_dir / name, tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    config.pop("chat_template", None)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    return tmp_path


def test_without_a_template_a_prompt_is_its_bare_text_and_one_line_says_so(
    base: Path, target_dir: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    tokenizer = load_tokenizer(base)
    load_tokenizer(base)
    said = capfd.readouterr().err
    assert said.count("no chat template") == 1 and str(base) in said and said.count("\n") == 1
    assert chat_ids(tokenizer, "Hello") == tokenizer("Hello")["input_ids"]
    assert chat_ids(load_tokenizer(target_dir), "Hello") != tokenizer("Hello")["input_ids"]


def test_a_template_is_told_by_the_files(base: Path, target_dir: Path) -> None:
    assert has_chat_template(target_dir) and not has_chat_template(base)
    config = json.loads((base / "tokenizer_config.json").read_text())
    (base / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": "{{ messages }}"}))
    assert has_chat_template(base)
    (base / "tokenizer_config.json").unlink()
    assert has_chat_template(base)  # the engine says what is wrong with it
    (base / "tokenizer_config.json").write_text("{}")
    (base / "chat_template.jinja").touch()
    assert has_chat_template(base)
