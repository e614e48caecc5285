"""Real vLLM over two ranks: one rank's tokens, and one rank's drafts.

The ranks are processes of this machine that talk over gloo, and share a small random pair. The embedded engine says what one
rank says, and how much of its drafts is accepted.
"""

import json
import os
import random
import signal
import time
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from benchmarks.small_pair import PLAIN, VOCAB
from benchmarks.vllm_engine import SHIM, Job, Round, run
from eagle3_serving.engine import DecodeOptions, EmbeddedEngine, Generation
from eagle3_serving.serve.client import parse_counters
from eagle3_serving.serve.server import Server
from eagle3_serving.serve.vllm import VllmOptions, vllm_command

pytest.importorskip("vllm")

pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]

RANKS, NODES, K = 2, 16, 3
HERE = Path(__file__).resolve().parent
ENGINE: dict[str, Any] = {
    **PLAIN,
    "tensor_parallel_size": RANKS,
    "max_num_seqs": 3,
    "per_request_spec_decode_metrics": "detailed",
}
GREEDY, SEEDED = range(2)
LENGTHS = (14, 5, 9)


def texts() -> list[list[int]]:
    drawn = random.Random(5)
    return [[drawn.randrange(VOCAB) for _ in range(n)] for n in (5, 40, 11)]


def rounds() -> list[Round]:
    """Greedy requests; and seeded ones, each drafted and not."""
    drawn = {"temperature": 0.9, "max_tokens": 5, "ignore_eos": True, "detokenize": False}
    seeded = [{**drawn, "seed": seed} for seed in (1, 2)]
    twice = [*seeded, *({**params, "extra_args": {"eagle3": "off"}} for params in seeded)]
    greedy = [{"temperature": 0, "max_tokens": n, "ignore_eos": True, "detokenize": False} for n in LENGTHS]
    return [Round(texts(), greedy), Round(texts()[:2] * 2, twice)]


def on_one_rank(one: EmbeddedEngine, **draft: Any) -> list[Generation]:
    lengths = zip(texts(), LENGTHS, strict=True)
    return [one.generate(text, DecodeOptions(tokens, eos_ids=(), **draft)) for text, tokens in lengths]


def bound() -> dict[str, str]:
    """Each rank on one core, as far as there are so many."""
    cpus = sorted(os.sched_getaffinity(0))
    return {"VLLM_CPU_OMP_THREADS_BIND": "|".join(str(cpus[rank % len(cpus)]) for rank in range(RANKS))}


def assert_one_ranks(said: dict[str, Any], one: Sequence[Generation]) -> None:
    assert said["rounds"][GREEDY]["tokens"] == [list(each.token_ids) for each in one]
    # the last step of a request may end before all that was accepted is said
    accepted = [told[:-1] for told in said["rounds"][GREEDY]["accepted"]]
    assert accepted == [list(each.accepted)[: len(told)] for each, told in zip(one, accepted, strict=True)]
    assert sum(map(sum, accepted)) > 0
    assert said["blocks"][0] == said["blocks"][1]


@pytest.mark.supports("vllm", "tree", "tensor parallelism")
def test_trees_over_two_ranks_are_one_ranks(pair: tuple[Path, Path], one: EmbeddedEngine) -> None:
    said = run(Job(pair[0], rounds(), pair[1], NODES, engine=ENGINE, settings=bound()))
    assert_one_ranks(said, on_one_rank(one, mode="tree", nodes=NODES, depth=8))
    drafted, plainly = said["rounds"][SEEDED]["tokens"][:2], said["rounds"][SEEDED]["tokens"][2:]
    assert drafted == plainly
    first, *others = said["last_drafts"]
    assert len(others) == RANKS - 1 and first and all(other == first for other in others)


@pytest.mark.supports("vllm", "chain", "tensor parallelism")
def test_a_chain_with_the_drafter_split_over_the_ranks(pair: tuple[Path, Path], one: EmbeddedEngine) -> None:
    said = run(Job(pair[0], rounds()[:1], pair[1], K, 1, ENGINE, settings=bound()))
    assert_one_ranks(said, on_one_rank(one, mode="chain", k=K))


@pytest.mark.supports("vllm", "tree", "Ray as the executor")
def test_ranks_that_ray_runs(pair: tuple[Path, Path], one: EmbeddedEngine) -> None:
    """Stock vLLM says that its CPU backend does not know Ray: `ray_on_cpu` calls a rank a GPU, of which there are two."""
    if find_spec("ray") is None:
        pytest.skip("ray is not installed here: vLLM does not ask for it; pip install ray")
    paths = [HERE / "ray_on_cpu", SHIM, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    settings = {
        **bound(),
        "PYTHONPATH": os.pathsep.join(map(str, paths)),
        "VLLM_USE_V2_MODEL_RUNNER": "1",
        "RAY_OVERRIDE_RESOURCES": json.dumps({"GPU": RANKS}),
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    by_ray = {**ENGINE, "distributed_executor_backend": "ray"}
    said = run(Job(pair[0], rounds(), pair[1], NODES, 1, by_ray, settings=settings))
    assert_one_ranks(said, on_one_rank(one, mode="tree", nodes=NODES, depth=8))


def test_a_whole_drafter_on_each_rank_and_a_rank_that_is_killed(
    pair: tuple[Path, Path], one: EmbeddedEngine, tmp_path: Path
) -> None:
    """`draft_tensor_parallel_size` 1. The server ends with its ranks: with a line in its log, and no process is left."""
    options = VllmOptions(*pair, k=K, max_model_len=256, max_num_seqs=3, tensor_parallel=RANKS)
    command = vllm_command(replace(options, extra=("--skip-tokenizer-init",)))
    argv = [part.replace('"method"', '"draft_tensor_parallel_size": 1, "method"') for part in command.argv]
    log = tmp_path / "server.log"
    with Server(replace(command, argv=argv, environment={**command.environment, **bound()}), log) as server:
        body = {"model": "target", "prompt": texts()[0], "temperature": 0, "max_tokens": LENGTHS[0]}
        body |= {"ignore_eos": True, "return_token_ids": True, "detokenize": False}
        reply = httpx.post(f"{server.url}/v1/completions", json=body, timeout=120.0).raise_for_status().json()
        assert reply["choices"][0]["token_ids"] == list(on_one_rank(one, mode="chain", k=K)[0].token_ids)
        assert parse_counters(httpx.get(f"{server.url}/metrics", timeout=30.0).text).drafts > 0
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
