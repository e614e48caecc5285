"""Run by `test_killed.py` in a process of its own: a toy run killed at random places, and the same one left alone.

    python killed.py DIRECTORY KILLS

Every attempt is a fork of this process, which has imported everything and computed nothing. Writes killed.pt and
whole.pt, the fp32 weights of both, and places.json, how many lines the log had when each kill came.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from eagle3_serving.drafter import Drafter, DrafterConfig
from eagle3_serving.engine.target import Target
from eagle3_serving.train.data import Answer
from eagle3_serving.train.options import TrainOptions
from eagle3_serving.train.run import Trainer

VOCAB, HIDDEN, STEPS = 24, 16, 40


def run(directory: Path, out: Path) -> None:
    """One attempt, from where the one before was killed."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    shape = {"vocab_size": VOCAB, "hidden_size": HIDDEN, "intermediate_size": 32}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    target = Target(LlamaForCausalLM(LlamaConfig(num_hidden_layers=4, initializer_range=0.3, **shape, **heads)))
    rng = random.Random(1)
    ids = [[rng.randrange(VOCAB) for _ in range(20)] for _ in range(40)]
    answers = [Answer(str(n), tuple(row[:5]), tuple(row[5:])) for n, row in enumerate(ids)]
    drafter = Drafter(
        DrafterConfig(
            **shape, **heads, head_dim=4, draft_vocab_size=VOCAB, target_hidden_size=HIDDEN, aux_layers=(1, 2, 3)
        )
    )
    options = TrainOptions(
        tokens=STEPS * 40,
        tokens_per_batch=64,
        ttt_steps=3,
        warmup=2,
        closed_form_batches=3,
        save_every=4,
        log_every=1,
        bf16=False,
    )
    directory.mkdir(exist_ok=True)
    trainer = Trainer(drafter, target, answers[4:], answers[:4], directory, options)
    trainer.run()
    torch.save(trainer.average + [p.detach() for p in trainer.parameters], out)


def attempt(directory: Path, out: Path, log_lines: int | None, delay_s: float) -> int:
    """Fork; kill it once its log has so many lines, and a moment later. Returns its wait status."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            run(directory, out)
            code = 0
        finally:
            os._exit(code)
    log = directory / "log.jsonl"
    while log_lines is not None:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status
        if log.exists() and log.read_bytes().count(b"\n") >= log_lines:
            time.sleep(delay_s)
            os.kill(child, signal.SIGKILL)
            break
        time.sleep(0.001)
    return os.waitpid(child, 0)[1]


def main(directory: Path, kills: int) -> None:
    rng, places = random.Random(7), []
    log = directory / "killed" / "log.jsonl"
    # the first before anything was saved
    for lines in [2, *sorted(rng.randrange(3, STEPS) for _ in range(kills - 1))]:
        status = attempt(directory / "killed", directory / "killed.pt", lines, rng.random() * 0.03)
        if not os.WIFSIGNALED(status):
            raise SystemExit(f"the run ended with {status} before it was killed")
        places.append(log.read_bytes().count(b"\n"))
    for name in ("killed", "whole"):
        if status := attempt(directory / name, directory / f"{name}.pt", None, 0):
            raise SystemExit(f"the {name} run ended with {status}")
    (directory / "places.json").write_text(json.dumps(places))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
