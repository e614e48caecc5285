"""The table of an adaptation on a toy: both drafters on the same recorded answers, family by family."""

import json
import sys
from pathlib import Path

import torch

from benchmarks.train_data import answer_line
from benchmarks.train_domain import main
from eagle3_serving.checkpoint.save import save_drafter
from eagle3_serving.engine import EmbeddedEngine
from eagle3_serving.engine.target import Target
from eagle3_serving.train.replies import greedy_answers

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "engine"))
from tiny import VOCAB, tiny_drafter, tiny_target


def test_an_adaptation_is_held_against_what_was_before(tmp_path: Path) -> None:
    tiny_target(1).model.save_pretrained(tmp_path / "target")
    engine = EmbeddedEngine(Target.load(tmp_path / "target"))
    lines = []
    for name in ("mine", "other"):
        prompts = torch.randint(0, VOCAB, (5, 4), generator=torch.Generator().manual_seed(len(name))).tolist()
        said = greedy_answers(engine, prompts, 16, 5, progress=False)
        (tmp_path / "work").mkdir(exist_ok=True)
        (tmp_path / "work" / f"{name}.jsonl").write_text("".join(map(answer_line, said)))
        lines += [json.dumps({"id": f"{name}-{n}", "family": name, "turns": ["asked before"]}) for n in range(5)]
    (tmp_path / "prompts.jsonl").write_text("\n".join(lines))
    for seed in (1, 2):
        save_drafter(tiny_drafter(seed), tmp_path / f"drafter-{seed}", torch.float32)
    command = ["--target", str(tmp_path / "target"), "--prompts", str(tmp_path / "prompts.jsonl"), "--own", "mine"]
    command += ["--work", str(tmp_path / "work"), "--out", str(tmp_path / "table.json"), "--max-tokens", "16"]
    tables = []
    for after in (1, 2):
        drafters = ["--before", str(tmp_path / "drafter-1"), "--after", str(tmp_path / f"drafter-{after}")]
        assert main([*command, *drafters]) == 0
        tables.append(json.loads((tmp_path / "table.json").read_text()))
    same, other = tables
    for mode in ("chain", "tree"):
        assert set(same["table"][mode]) == {"mine", "other"}
        assert all(row["change"] == row["error"] == 0.0 for row in same["table"][mode].values())
        assert other["table"][mode]["mine"]["before"] == same["table"][mode]["mine"]["before"]
        assert other["means"][mode]["own"] == other["table"][mode]["mine"]["change"]
        assert other["means"][mode]["elsewhere"] == other["table"][mode]["other"]["change"]
    assert any(row["change"] and row["error"] for row in other["table"]["tree"].values())
