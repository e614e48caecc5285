"""A real plain server and a real speculative one: the drafter may change the speed, never a token."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from eagle3_serving.eval.law import BOUND, DRAWS, PROMPTS, TOKENS, compare
from eagle3_serving.serve.client import ChatClient
from eagle3_serving.serve.server import Server, ServerCommand
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
    command = vllm_command(VllmOptions(target_dir, drafter_dir, k=K, told_by_step=True))
    with Server(command, log) as server, ChatClient(server.url) as client:
        yield client


@pytest.mark.supports("vllm", "chain", "greedy decoding")
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


def test_an_answer_tells_what_each_of_its_steps_accepted(spec: ChatClient, prompts: tuple[str, ...]) -> None:
    before = spec.counters()
    answer = spec.ask(prompts[2], MAX_TOKENS, natural_end=False)
    spent = spec.counters() - before
    assert (len(answer.accepted), sum(answer.accepted)) == (spent.drafts, spent.accepted)
    assert 0 <= 1 + len(answer.accepted) + sum(answer.accepted) - MAX_TOKENS <= K  # the last step may pass the end
    assert answer.prompt_tokens > 10


@pytest.mark.supports("vllm", "chain", "continuous batching")
def test_requests_in_flight_together_get_the_answers_they_get_alone(spec: ChatClient, prompts: tuple[str, ...]) -> None:
    alone = [spec.ask(prompt, MAX_TOKENS).token_ids for prompt in prompts[:4]]
    together, _ = spec.ask_all(prompts[:4], MAX_TOKENS, concurrency=4)
    assert [answer.token_ids for answer in together] == alone


def seeded(client: ChatClient, prompt: str, temperature: float, **more: object) -> list[list[int]]:
    """Token ids of one answer a seed, in flight together."""

    def ask(seed: int) -> list[int]:
        body = {"model": client.model, "prompt": prompt, "max_tokens": 8, "seed": seed, "ignore_eos": True, **more}
        body |= {"temperature": temperature, "return_token_ids": True}
        reply = httpx.post(f"{client.url}/v1/completions", json=body, timeout=120.0).raise_for_status()
        ids: list[int] = reply.json()["choices"][0]["token_ids"]
        return ids

    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(ask, range(8)))


@pytest.mark.parametrize("more", [{}, {"top_k": 20, "top_p": 0.9}, {"repetition_penalty": 1.3}], ids=str)
@pytest.mark.supports("vllm", "chain", "seeds", "top-k, top-p", "penalties")
def test_a_seed_gives_plain_decodings_answer_each_time(
    plain: ChatClient, spec: ChatClient, more: dict[str, object]
) -> None:
    before = spec.counters()
    said = [seeded(spec, PROMPTS[2], 0.8, **more) for _ in range(2)]
    assert said[0] == said[1] == seeded(plain, PROMPTS[2], 0.8, **more)
    assert (spec.counters() - before).accepted > 0


@pytest.mark.supports("vllm", "chain", "sampling by the target's law")
def test_sampled_answers_follow_plain_decodings_law(plain: ChatClient, spec: ChatClient) -> None:
    warm, cold, said = (
        [client.draw(text, DRAWS, TOKENS, temperature) for text in PROMPTS[1:]]
        for client, temperature in ((plain, 0.8), (plain, 0.05), (spec, 0.8))
    )
    assert compare(warm, said) > BOUND
    assert compare(cold, said) < BOUND  # the likeliest token each time would be found


@pytest.mark.supports("vllm", "chain", "streaming")
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


def test_a_vllm_that_is_not_as_known_serves_its_own_eagle3(
    plain: ChatClient,
    target_dir: Path,
    drafter_dir: Path,
    prompts: tuple[str, ...],
    doctored: Callable[[ServerCommand, str], ServerCommand],
    tmp_path: Path,
) -> None:
    command = vllm_command(VllmOptions(target_dir, drafter_dir, k=K))
    command = doctored(command, "vllm.v1.spec_decode.llm_base_proposer:SpecDecodeBaseProposer.propose")
    log = tmp_path / "server.log"
    with Server(command, log) as server, ChatClient(server.url) as client:
        said = [client.ask(prompt, MAX_TOKENS).token_ids for prompt in prompts[:3]]
        spent, text = client.counters(), log.read_text()
    assert said == [plain.ask(prompt, MAX_TOKENS).token_ids for prompt in prompts[:3]]
    assert spent.accepted > 0
    [line] = [line for line in text.splitlines() if "eagle3: " in line]  # of all its processes
    assert "vLLM's own EAGLE-3 serves" in line and "the proposer's propose takes (unknown, others)" in line
    assert "Traceback" not in text
