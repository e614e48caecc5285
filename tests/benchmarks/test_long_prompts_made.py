"""Long prompts are as long as was asked, and end in their question."""

import json
from pathlib import Path

import pytest

from benchmarks import long_prompts
from eagle3_serving.targets.chat import chat_ids, load_tokenizer


def test_a_question_comes_once_a_length(target_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = tmp_path / "eval.jsonl", tmp_path / "long.jsonl"
    rows = [("cnn_dm", f"Summarize: Story {n}. {'The river rose again. ' * (5 + n)}") for n in range(8)]
    rows += [
        ("humaneval", f"Complete the code I provided.\n\ndef f{n}(x):\n{'    x += 1' * (5 + n)}") for n in range(8)
    ]
    source.write_text(
        "".join(json.dumps({"id": str(i), "family": f, "turns": [t]}) + "\n" for i, (f, t) in enumerate(rows))
    )
    argv = ["--prompts", str(source), "--target", str(target_dir), "--limit", "2", "--out", str(out), "--lengths"]
    assert long_prompts.main([*argv, "120", "200"]) == 0
    tokenizer = load_tokenizer(target_dir)
    made = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(made) == 8
    for one, length in zip(made, (120, 200) * 4, strict=True):
        assert abs(len(chat_ids(tokenizer, one["turns"][0])) - length) <= 4
        assert "Summarize: " not in one["turns"][0] and "code I provided" not in one["turns"][0]
    assert "Story 0." in made[0]["turns"][0] and "Story 0." in made[1]["turns"][0]
    assert long_prompts.main([*argv, "9000"]) == 2
    assert "cannot be made of texts" in capsys.readouterr().err
