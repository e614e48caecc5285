"""The target answers prompts on a real vLLM server, for training: resumed line by line, what is too long left out."""

import json
from pathlib import Path

import pytest

from eagle3_serving.engine import DecodeOptions, EmbeddedEngine
from eagle3_serving.engine.target import Target
from eagle3_serving.errors import InputError
from eagle3_serving.eval.prompts import Prompt
from eagle3_serving.targets.chat import chat_ids, load_tokenizer
from eagle3_serving.train.answers import generate_answers

pytest.importorskip("vllm")

MAX_TOKENS = 12


def test_prompts_are_answered_once_and_long_ones_left_out(
    target_dir: Path, prompts: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = [Prompt(f"p{n}", "train", (text,)) for n, text in enumerate(prompts[:3])]
    asked.append(Prompt("book", "train", ("word " * 3000,)))
    out = tmp_path / "answers.jsonl"
    tokenizer = load_tokenizer(target_dir)
    kept = {"id": "p1", "temperature": 0.8, "prompt_ids": chat_ids(tokenizer, prompts[1]), "response_ids": [5, 6, 7]}
    # a kill left one answer and half of another
    out.write_text(json.dumps(kept) + '\n{"id": "p2", "temper')
    generate_answers(target_dir, asked, out, max_prompt=100, max_tokens=MAX_TOKENS, dtype="fp32")
    assert "1 prompts of more than 100 tokens are not asked (first: book)" in capsys.readouterr().out
    rows = {row["id"]: row for row in map(json.loads, out.read_text().splitlines())}
    assert set(rows) == {"p0", "p1", "p2"} and rows["p1"] == kept
    engine = EmbeddedEngine(Target.load(target_dir))
    for name in ("p0", "p2"):  # every second one is greedy
        ids = rows[name]["prompt_ids"]
        assert rows[name]["temperature"] == 0.0 and ids == chat_ids(tokenizer, asked[int(name[1])].turns[0])
        said = engine.generate(ids, DecodeOptions(MAX_TOKENS, "plain"))
        assert rows[name]["response_ids"] == list(said.token_ids)
    before = out.read_text()
    generate_answers(target_dir, asked, out, max_prompt=100)  # no server starts: nothing is left to ask
    assert out.read_text() == before


def test_a_damaged_file_of_answers_is_named(target_dir: Path, tmp_path: Path) -> None:
    out = tmp_path / "answers.jsonl"
    out.write_text('{"id": "p0"}\nnot json\n')
    with pytest.raises(InputError, match=r"answers\.jsonl:2: not an answer"):
        generate_answers(target_dir, [Prompt("p1", "train", ("Why?",))], out)
