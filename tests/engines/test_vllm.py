"""A real plain server and a real speculative one: the drafter may change the speed, never a token."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from eagle3_serving.serve.client import ChatClient
from eagle3_serving.serve.server import Server
from eagle3_serving.serve.vllm import VllmOptions, vllm_command

pytest.importorskip("vllm")

K = 3
MAX_TOKENS = 48


@pytest.fixture(scope="module")
def plain(target_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ChatClient]:
    log = tmp_path_factory.mktemp("plain") / "server.log"
    with Server(vllm_command(VllmOptions(target_dir)), log) as server, ChatClient(server.url) as client:
        yield client


@pytest.fixture(scope="module")
def spec(target_dir: Path, drafter_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ChatClient]:
    log = tmp_path_factory.mktemp("spec") / "server.log"
    command = vllm_command(VllmOptions(target_dir, drafter_dir, k=K))
    with Server(command, log) as server, ChatClient(server.url) as client:
        yield client


def test_greedy_answers_are_equal_token_for_token(
    plain: ChatClient, spec: ChatClient, prompts: tuple[str, ...]
) -> None:
    before = spec.counters()
    differing = []
    for prompt in prompts:
        expected = plain.ask(prompt, MAX_TOKENS)
        answer = spec.ask(prompt, MAX_TOKENS)
        if (answer.token_ids, answer.text) != (expected.token_ids, expected.text):
            differing.append(prompt)
    assert not differing
    spent = spec.counters() - before
    # Equal tokens prove nothing where the drafter was never asked.
    assert spent.drafts > 0
    assert spent.accepted == sum(spent.accepted_by_position)
    assert len(spent.accepted_by_position) == K
    assert spent.accepted_length > 1.0


def test_requests_in_flight_together_get_the_answers_they_get_alone(spec: ChatClient, prompts: tuple[str, ...]) -> None:
    alone = [spec.ask(prompt, MAX_TOKENS).token_ids for prompt in prompts[:4]]
    together, _ = spec.ask_all(prompts[:4], MAX_TOKENS, concurrency=4)
    assert [answer.token_ids for answer in together] == alone


def test_the_answer_streams(spec: ChatClient) -> None:
    pieces: list[str] = []
    answer = spec.ask("Count from one to twenty in words.", MAX_TOKENS, on_text=pieces.append)
    assert len(pieces) > 1
    assert "".join(pieces) == answer.text
    assert 0 < answer.first_token_s < answer.total_s


def test_the_plain_server_does_not_speculate(plain: ChatClient) -> None:
    assert plain.counters().drafts == 0


def test_a_server_of_chains_shows_no_trees(spec: ChatClient) -> None:
    assert spec.counters().drafts > 0
    assert spec.tree_passes() == 0
