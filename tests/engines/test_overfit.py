"""A drafter that knows the answers: nearly all it proposes is accepted by a real server, and no token changes."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.overfit import overfit
from eagle3_serving.serve.client import ChatClient
from eagle3_serving.serve.server import Server
from eagle3_serving.serve.vllm import VllmOptions, vllm_command

pytest.importorskip("vllm")

K, MAX_TOKENS, PROMPTS = 4, 40, 4


@pytest.fixture(scope="module")
def knowing(target_dir: Path, prompts: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return overfit(target_dir, prompts[:PROMPTS], tmp_path_factory.mktemp("overfit"), MAX_TOKENS, rounds=100)


@pytest.fixture(scope="module")
def answers(knowing: Path) -> list[list[int]]:
    """What it learned: plain decoding's answers on the embedded engine, which vLLM's are (`test_vllm.py`)."""
    lines = (knowing.parent / "answers.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["response_ids"] for line in lines]


@pytest.fixture(scope="module")
def spec(target_dir: Path, knowing: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ChatClient]:
    log = tmp_path_factory.mktemp("spec") / "server.log"
    command = vllm_command(VllmOptions(target_dir, knowing, k=K))
    with Server(command, log) as server, ChatClient(server.url) as client:
        yield client


def test_over_nine_in_ten_drafted_tokens_are_accepted(
    spec: ChatClient, answers: list[list[int]], prompts: tuple[str, ...]
) -> None:
    before = spec.counters()
    said = [list(spec.ask(prompt, MAX_TOKENS).token_ids) for prompt in prompts[:PROMPTS]]
    assert said == answers
    spent = spec.counters() - before
    # a draft that runs past the answer's end is cut there: positions, not tokens, are counted
    assert spent.accepted_by_position[0] / spent.drafts > 0.9
    assert spent.accepted_length > 1 + 0.85 * K
