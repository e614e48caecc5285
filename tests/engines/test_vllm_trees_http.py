"""A real vLLM server with trees, over HTTP: eight requests at once, clients that hang up, and what the endpoint shows."""

import os
import re
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from benchmarks.vllm_engine import SHIM, Job, Round, run
from eagle3_serving.serve.client import ChatClient
from eagle3_serving.serve.server import Server
from eagle3_serving.serve.vllm import VllmOptions, vllm_command
from eagle3_serving.targets.chat import chat_ids, load_tokenizer

pytest.importorskip("vllm")
pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]

RANKS = 2
MAX_TOKENS = 12


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("trees") / "server.log"


@pytest.fixture(scope="module")
def trees(target_dir: Path, drafter_dir: Path, log: Path) -> Iterator[ChatClient]:
    """Two ranks of data parallelism: what is said to the server is said to either."""
    extra = ("--data-parallel-size", str(RANKS))
    command = vllm_command(VllmOptions(target_dir, drafter_dir, k=16, max_model_len=512, max_num_seqs=8, extra=extra))
    known = filter(None, [os.environ.get("PYTHONPATH")])
    more = {"VLLM_USE_V2_MODEL_RUNNER": "1", "PYTHONPATH": os.pathsep.join([str(SHIM), *known])}
    cpus = sorted(os.sched_getaffinity(0))
    more["VLLM_CPU_OMP_THREADS_BIND"] = "|".join(str(cpus[rank % len(cpus)]) for rank in range(RANKS))
    with (
        Server(replace(command, environment={**command.environment, **more}), log) as server,
        ChatClient(server.url) as client,
    ):
        yield client


def metric(client: ChatClient, name: str) -> float:
    text = httpx.get(f"{client.url}/metrics", timeout=30.0).text
    return sum(float(value) for value in re.findall(rf"^{re.escape(name)}(?:\{{[^}}]*\}})? (\S+)$", text, re.MULTILINE))


@pytest.fixture(scope="module")
def expected(target_dir: Path, prompts: tuple[str, ...]) -> list[list[int]]:
    """Plain decoding's answers."""
    tokenizer = load_tokenizer(target_dir)
    ids = [chat_ids(tokenizer, prompt) for prompt in prompts[:10]]
    answers: list[list[int]] = run(
        Job(target_dir, [Round(ids, {"temperature": 0, "max_tokens": MAX_TOKENS})], runner=1)
    )["rounds"][0]["tokens"]
    return answers


def by_rank(client: ChatClient, name: str) -> list[float]:
    """A metric of vLLM's own, of each rank of data parallelism."""
    text = httpx.get(f"{client.url}/metrics", timeout=30.0).text
    found = dict(re.findall(rf'^{re.escape(name)}\{{engine="(\d)"[^}}]*\}} (\S+)$', text, re.MULTILINE))
    return [float(found[str(rank)]) for rank in range(RANKS)]


@pytest.mark.supports("vllm", "tree", "data parallelism")
def test_eight_requests_at_once_get_plain_decodings_answers(
    trees: ChatClient, expected: list[list[int]], prompts: tuple[str, ...]
) -> None:
    answers, _ = trees.ask_all(prompts[:10], MAX_TOKENS, concurrency=8)
    assert [list(answer.token_ids) for answer in answers] == expected
    assert min(by_rank(trees, "vllm:spec_decode_num_accepted_tokens_total")) > 0


def test_a_rank_with_nothing_to_do_holds_nobody_up(
    trees: ChatClient, expected: list[list[int]], prompts: tuple[str, ...]
) -> None:
    before = by_rank(trees, "vllm:generation_tokens_total")
    answer = trees.ask(prompts[0], MAX_TOKENS)
    assert list(answer.token_ids) == expected[0]
    assert sorted(b - a for a, b in zip(before, by_rank(trees, "vllm:generation_tokens_total"), strict=True)) == [
        0,
        len(answer.token_ids),
    ]


def test_the_endpoint_shows_the_trees(trees: ChatClient) -> None:
    time.sleep(1.5)  # counts are written once a second
    trees.ask("Name a tree.", 4)
    time.sleep(1.5)
    trees.ask("Name a bird.", 4)
    assert metric(trees, "vllm:eagle3_accepted_length") > 1.2
    assert metric(trees, "vllm:eagle3_nodes_verified_total") > 8 * metric(trees, "vllm:eagle3_verify_passes_total") > 0
    assert metric(trees, "vllm:eagle3_nodes_budgeted_total") > 0
    assert trees.tree_passes() > 0


def test_a_request_is_drafted_or_not_as_its_body_says(trees: ChatClient) -> None:
    """An OpenAI body's `vllm_xargs`; what cannot be meant is refused in one line."""
    body = {"model": trees.model, "prompt": "One, two, three", "max_tokens": 4, "temperature": 0}

    def ask(fields: dict[str, object]) -> httpx.Response:
        return httpx.post(f"{trees.url}/v1/completions", json={**body, "vllm_xargs": fields}, timeout=120.0)

    before = trees.counters()
    off, other = ask({"eagle3": False}).raise_for_status(), ask({"eagle3": "maybe"})
    assert (trees.counters() - before).drafts == 0
    on = ask({"eagle3": True}).raise_for_status()
    assert (trees.counters() - before).drafts > 0
    assert off.json()["choices"][0]["text"] == on.json()["choices"][0]["text"]
    assert other.status_code == 400 and "eagle3 is 'maybe': on or off" in other.text


@pytest.mark.supports("vllm", "tree", "aborted requests")
def test_clients_that_hang_up_leave_nothing_behind(trees: ChatClient, log: Path) -> None:
    body = {"model": trees.model, "messages": [{"role": "user", "content": "Tell me a long story."}], "stream": True}
    for _ in range(3):
        url, asked = f"{trees.url}/v1/chat/completions", {**body, "max_tokens": 200}
        with httpx.stream("POST", url, json=asked, timeout=120.0) as answer:
            next(answer.iter_bytes())
    deadline = time.monotonic() + 60
    while metric(trees, "vllm:num_requests_running") and time.monotonic() < deadline:
        time.sleep(0.5)
    trees.ask("Name a fish.", 4)
    assert metric(trees, "vllm:num_requests_running") == 0
    assert metric(trees, "vllm:kv_cache_usage_perc") == 0
    assert "ERROR" not in log.read_text() and "Traceback" not in log.read_text()
