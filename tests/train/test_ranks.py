"""Two ranks under torchrun keep one set of weights, average by rows, and can share target and drafter between them."""

import json
import random
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from eagle3_serving.errors import InputError
from eagle3_serving.train.job import fit
from eagle3_serving.train.options import TrainJob

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
VOCAB = 48


def test_two_ranks_train_one_drafter(tmp_path: Path) -> None:
    script = Path(__file__).with_name("two_ranks.py")
    command = [*TORCHRUN, str(script), str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    end = torch.load(tmp_path / "run" / "done.pt", weights_only=True)
    assert end["seen"] >= 500 and end["steps"] > 3
    records = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    steps = [record["step"] for record in records if "loss" in record]
    assert steps == list(range(1, end["steps"] + 1)), "one rank alone writes the log"
    state = torch.load(tmp_path / "run" / "state.pt", weights_only=True)
    assert state["recipe"]["ranks"] == 2 and state["seen_tokens"] == end["seen"]


@pytest.fixture
def answered(tmp_path: Path) -> list[str]:
    """A toy target on disk and answers to train on, as arguments of `eagle3 train`."""
    torch.manual_seed(0)
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 4}
    config = LlamaConfig(vocab_size=VOCAB, hidden_size=32, intermediate_size=64, initializer_range=0.3, **heads)
    LlamaForCausalLM(config).save_pretrained(tmp_path / "target")
    dice = random.Random(1)
    rows = [[dice.randrange(VOCAB) for _ in range(9 + n % 12)] for n in range(40)]
    lines = [json.dumps({"id": str(n), "prompt_ids": r[:5], "response_ids": r[5:]}) for n, r in enumerate(rows)]
    (tmp_path / "answers.jsonl").write_text("\n".join(lines))
    return ["--target", str(tmp_path / "target"), "--answers", str(tmp_path / "answers.jsonl")]


def test_a_target_in_shares_teaches_the_same(answered: list[str], tmp_path: Path) -> None:
    weights = []
    # a target in shares keeps no features by itself: through a cache they would be rounded
    for flag, cached in (("--shard-target", "--cache-features"), ("--no-shard-target", "--no-cache-features")):
        command = [*TORCHRUN, "-m", "eagle3_serving.cli.main", "train", *answered, "--out", str(tmp_path / flag), flag]
        command += ["--tokens", "300", "--tokens-per-batch", "64", "--draft-vocab-size", str(VOCAB), "--held-out", "4"]
        command += ["--no-bf16", cached, "--eval-limit", "0", "--ttt-steps", "2"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
        assert done.returncode in (0, 1), done.stderr[-3000:]  # a toy target is not what check calls right
        assert (tmp_path / flag / "drafter" / "config.json").is_file(), done.stdout
        weights.append(torch.load(tmp_path / flag / "state.pt", weights_only=True)["average"])
    torch.testing.assert_close(weights[0], weights[1], atol=0, rtol=0)


def test_a_drafter_in_shares_that_loses_a_rank_learns_what_a_whole_one_does(
    answered: list[str], tmp_path: Path
) -> None:
    def start(name: str, flag: str) -> "subprocess.Popen[str]":
        command = [*TORCHRUN, "-m", "eagle3_serving.cli.main", "train", *answered, "--out", str(tmp_path / name)]
        command += ["--tokens", "4000", "--tokens-per-batch", "32", "--draft-vocab-size", str(VOCAB), "--held-out", "0"]
        command += ["--no-bf16", "--eval-limit", "0", "--ttt-steps", "2", "--save-every", "4", "--log-every", "1"]
        command.append(flag)
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)

    lost = start("lost", "--shard-drafter")
    until = time.monotonic() + 150
    while not (tmp_path / "lost" / "state.pt").exists():
        assert lost.poll() is None and time.monotonic() < until, lost.communicate()[1][-3000:]
        time.sleep(0.005)
    second = next(p for p in psutil.Process(lost.pid).children(recursive=True) if p.environ().get("RANK") == "1")
    second.kill()
    lost.communicate(timeout=100)
    assert lost.returncode != 0
    before = torch.load(tmp_path / "lost" / "state.pt", weights_only=True)
    assert 0 < before["seen_tokens"] < 4000, "it was killed on the way"
    averages = []
    for name, flag in (("lost", "--shard-drafter"), ("whole", "--no-shard-drafter")):
        run = start(name, flag)
        error = run.communicate(timeout=200)[1]
        assert run.returncode in (0, 1), error[-3000:]  # a toy target is not what check calls right
        averages.append(torch.load(tmp_path / name / "state.pt", weights_only=True)["average"])
    for ours, theirs in zip(*averages, strict=True):  # as saved: whole
        torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=2e-4)


def test_a_target_is_shared_among_several(answered: list[str], tmp_path: Path) -> None:
    job = TrainJob(
        Path(answered[1]), tmp_path / "run", answers=(Path(answered[3]),), draft_vocab_size=24, shard_target=True
    )
    with pytest.raises(InputError, match="start several with torchrun"):
        fit(job)
