"""Real vLLM over three ranks (the small model's heads divide by three): one rank's tokens, and one rank's drafts.

The ranks are processes of this machine that talk over gloo.
"""

import os
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from benchmarks.vllm_engine import Job, Round, run
from eagle3_serving.serve.client import ChatClient
from eagle3_serving.serve.server import Server
from eagle3_serving.serve.vllm import VllmOptions, vllm_command
from eagle3_serving.targets.chat import chat_ids, load_tokenizer

pytest.importorskip("vllm")

pytestmark = [pytest.mark.engine, pytest.mark.timeout(1200)]

RANKS = 3
ENGINE: dict[str, Any] = {"max_num_seqs": 3, "max_model_len": 192, "max_num_batched_tokens": 192}
GREEDY, SEEDED = range(2)


def bound() -> dict[str, str]:
    """Each rank on one core, as far as there are so many."""
    cpus = sorted(os.sched_getaffinity(0))
    return {"VLLM_CPU_OMP_THREADS_BIND": "|".join(str(cpus[rank % len(cpus)]) for rank in range(RANKS))}


def over_ranks(job: Job) -> dict[str, Any]:
    job.engine = {**job.engine, "tensor_parallel_size": RANKS}
    job.settings = {**job.settings, **bound()}
    return run(job)


@pytest.fixture(scope="module")
def rounds(target_dir: Path, prompts: tuple[str, ...]) -> list[Round]:
    tokenizer = load_tokenizer(target_dir)
    ids = [chat_ids(tokenizer, prompt) for prompt in prompts[:3]]
    return [
        Round(ids, [{"temperature": 0, "max_tokens": n, "ignore_eos": True} for n in (9, 6, 8)]),
        Round(ids[:2], [{"temperature": 0.9, "max_tokens": 3, "seed": seed} for seed in (1, 2)]),
    ]


@pytest.fixture(scope="module")
def plain(target_dir: Path, rounds: list[Round]) -> dict[str, Any]:
    return run(Job(target_dir, rounds[:1], runner=1, engine=ENGINE))


@pytest.mark.supports("vllm", "tree", "tensor parallelism")
def test_trees_over_three_ranks_are_one_ranks(
    target_dir: Path, drafter_dir: Path, rounds: list[Round], plain: dict[str, Any]
) -> None:
    one = run(Job(target_dir, rounds, drafter_dir, nodes=6, engine=ENGINE))
    three = over_ranks(Job(target_dir, rounds, drafter_dir, nodes=6, engine=ENGINE))
    assert three["rounds"][GREEDY]["tokens"] == plain["rounds"][GREEDY]["tokens"]
    assert three["rounds"][SEEDED]["tokens"] == one["rounds"][SEEDED]["tokens"]
    assert [part["steps"] for part in three["rounds"]] == [part["steps"] for part in one["rounds"]]
    accepted = "vllm:spec_decode_num_accepted_tokens"
    assert three["metrics"][accepted] == one["metrics"][accepted] > 0
    first, *others = three["last_drafts"]
    assert len(others) == RANKS - 1 and first and all(other == first for other in others)
    assert three["blocks"][0] == three["blocks"][1]


@pytest.mark.supports("vllm", "chain", "tensor parallelism")
def test_a_chain_with_the_drafter_split_over_the_ranks(
    target_dir: Path, drafter_dir: Path, rounds: list[Round], plain: dict[str, Any]
) -> None:
    said = over_ranks(Job(target_dir, rounds[:1], drafter_dir, nodes=3, runner=1, engine=ENGINE))
    assert said["rounds"][GREEDY]["tokens"] == plain["rounds"][GREEDY]["tokens"]
    assert said["metrics"]["vllm:spec_decode_num_accepted_tokens"] > 0


def test_a_whole_drafter_on_each_rank_and_a_rank_that_is_killed(
    target_dir: Path, drafter_dir: Path, tmp_path: Path
) -> None:
    """`draft_tensor_parallel_size` 1. The server ends with its ranks: with a line in its log, and no process is left."""
    options = VllmOptions(target_dir, drafter_dir, k=3, max_model_len=192, max_num_seqs=3)
    command = vllm_command(options)
    argv = [part.replace('"method"', '"draft_tensor_parallel_size": 1, "method"') for part in command.argv]
    argv += ["--tensor-parallel-size", str(RANKS)]
    log = tmp_path / "server.log"
    with Server(replace(command, argv=argv, environment={**command.environment, **bound()}), log) as server:
        with ChatClient(server.url) as client:
            spoken = client.ask("Why is the sky blue?", 12)
            assert client.counters().accepted > 0
        family = psutil.Process(server.pid).children(recursive=True)
        [rank] = [child for child in family if "Worker_TP1" in " ".join(child.cmdline()) or "TP1" in child.name()]
        os.kill(rank.pid, signal.SIGKILL)
        give_up = time.monotonic() + 60
        while server.ended is None and time.monotonic() < give_up:
            time.sleep(0.2)
        assert server.ended is not None  # vLLM says 0, whatever it ended for
        _, alive = psutil.wait_procs(family, timeout=20)
        assert not alive
    assert "died unexpectedly" in log.read_text()
    assert spoken.text
