"""What the benchmarks of training share: a target of eight layers on disk, and a `--work` that needs no tokenizer."""

import argparse
import json
import random
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.train_data import answer_line
from eagle3_serving.engine import EmbeddedEngine
from eagle3_serving.train.replies import greedy_answers

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "engine"))
from tiny import VOCAB, tiny_target

MakeWork = Callable[[Path, int, int], argparse.Namespace]


@pytest.fixture(scope="session")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("target")
    tiny_target(1, layers=8).model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def make_work() -> MakeWork:
    """(directory, answers to train on, tokens a run) -> arguments; ten answers more are held out in two families."""

    def make(work: Path, count: int, tokens: int) -> argparse.Namespace:
        rng = random.Random(0)
        prompts = [[rng.randrange(VOCAB) for _ in range(5)] for _ in range(count + 10)]
        answers = greedy_answers(EmbeddedEngine(tiny_target(1, layers=8)), prompts, 24, 16, progress=False)
        lines = [answer_line(answer) for answer in answers]
        (work / "all.jsonl").write_text("".join(lines[:count]))
        held_out = {"one": lines[count : count + 5], "other": lines[count + 5 :]}
        kept = {name: list(map(json.loads, family)) for name, family in held_out.items()}
        (work / "held-out.json").write_text(json.dumps(kept))
        shared = {"limit": 5, "max_tokens": 24, "draft_vocab_size": VOCAB, "tokens": tokens}
        return argparse.Namespace(work=work, answers=[work / "all.jsonl"], prompts=[], **shared)

    return make
