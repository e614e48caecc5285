"""A converted drafter in real servers accepts what the embedded engine accepts; a broken one accepts nothing, unsaid."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from eagle3_serving.checkpoint import check, convert
from eagle3_serving.engine import DecodeOptions, EmbeddedEngine
from eagle3_serving.errors import InputError
from eagle3_serving.serve.client import ChatClient
from eagle3_serving.serve.server import Server
from eagle3_serving.serve.sglang import SglangOptions, Shape, sglang_command, sglang_python
from eagle3_serving.serve.sglang_client import SglangClient
from eagle3_serving.serve.vllm import VllmOptions, vllm_command
from eagle3_serving.targets.chat import chat_ids, load_tokenizer

K, MAX_TOKENS, PROMPTS = 3, 24, 4
Passes = list[tuple[list[int], int]]  # of each prompt: the answer, and the target passes that verified a draft


@pytest.fixture(scope="module")
def eagle(target_dir: Path, drafter_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped drafter as the method's own repository would hold it."""
    folder = tmp_path_factory.mktemp("eagle") / "drafter"
    convert(drafter_dir, folder, to="eagle", target=target_dir)
    return folder


@pytest.fixture(scope="module")
def embedded(target_dir: Path, eagle: Path, prompts: tuple[str, ...]) -> Passes:
    engine, tokenizer = EmbeddedEngine.load(target_dir, eagle), load_tokenizer(target_dir)
    ids = [chat_ids(tokenizer, prompt) for prompt in prompts[:PROMPTS]]
    said = [engine.generate_many([p], DecodeOptions(MAX_TOKENS, "chain", k=K), 1)[0] for p in ids]
    return [(list(answer.token_ids), answer.passes - 1) for answer in said]


def headless(drafter: Path, folder: Path) -> Path:
    """The same without its head: both engines load it, and put something in its place."""
    folder.mkdir()
    (folder / "config.json").write_text((drafter / "config.json").read_text())
    tensors = load_file(drafter / "model.safetensors")
    del tensors["lm_head.weight"]
    save_file(tensors, folder / "model.safetensors")
    return folder


def ask(client: ChatClient | SglangClient, prompts: tuple[str, ...]) -> Passes:
    found = []
    for prompt in prompts[:PROMPTS]:
        before = client.counters()
        answer = client.ask(prompt, MAX_TOKENS)
        found.append((list(answer.token_ids), (client.counters() - before).drafts))
    return found


@pytest.fixture(scope="module")
def for_vllm(eagle: Path, target_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vllm") / "drafter"
    convert(eagle, folder, to="speculators", target=target_dir)
    return folder


@pytest.fixture(scope="module")
def for_sglang(for_vllm: Path, target_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sglang") / "drafter"
    convert(for_vllm, folder, to="sglang", target=target_dir)
    return folder


def vllm(target: Path, drafter: Path, folder: Path) -> Iterator[ChatClient]:
    pytest.importorskip("vllm")
    command = vllm_command(VllmOptions(target, drafter, k=K, plugin=False))
    with Server(command, folder / "server.log") as server, ChatClient(server.url) as client:
        yield client


def sglang(target: Path, drafter: Path, folder: Path) -> Iterator[SglangClient]:
    try:
        sglang_python()
    except InputError as error:
        pytest.skip(str(error))
    command = sglang_command(SglangOptions(target, drafter, Shape.chain(K), plugin=False))
    with Server(command, folder / "server.log") as server, SglangClient(server.url, target) as client:
        yield client


@pytest.mark.supports("vllm", "chain", "converted drafters")
def test_vllm_accepts_what_the_embedded_engine_accepts(
    target_dir: Path, for_vllm: Path, embedded: Passes, prompts: tuple[str, ...], tmp_path: Path
) -> None:
    for client in vllm(target_dir, for_vllm, tmp_path):
        assert ask(client, prompts) == embedded


@pytest.mark.supports("sglang", "tree", "converted drafters")
def test_sglang_accepts_what_the_embedded_engine_accepts(
    target_dir: Path, for_sglang: Path, embedded: Passes, prompts: tuple[str, ...], tmp_path: Path
) -> None:
    for client in sglang(target_dir, for_sglang, tmp_path):
        assert ask(client, prompts) == embedded


def test_vllm_serves_a_drafter_without_its_head_and_the_check_says_so(
    target_dir: Path, for_vllm: Path, embedded: Passes, prompts: tuple[str, ...], tmp_path: Path
) -> None:
    broken = headless(for_vllm, tmp_path / "broken")
    assert [f for f in check(broken, engine="vllm", target=target_dir) if f.breaks and f.where == "lm_head.weight"]
    for client in vllm(target_dir, broken, tmp_path):
        said = ask(client, prompts)
        assert [tokens for tokens, _ in said] == [tokens for tokens, _ in embedded]  # exact, and not one bit faster
        assert client.counters().accepted_length < 1.05


def test_sglang_serves_a_drafter_without_its_head_and_the_check_says_so(
    target_dir: Path, for_sglang: Path, embedded: Passes, prompts: tuple[str, ...], tmp_path: Path
) -> None:
    broken = headless(for_sglang, tmp_path / "broken")
    assert [f for f in check(broken, engine="sglang", target=target_dir) if f.breaks and f.where == "lm_head.weight"]
    for client in sglang(target_dir, broken, tmp_path):
        said = ask(client, prompts)
        assert [tokens for tokens, _ in said] == [tokens for tokens, _ in embedded]
        assert client.counters().accepted_length < 1.05
