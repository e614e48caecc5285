"""Stock SGLang on this machine, plain and with its own EAGLE-3 on the drafter that ships: what the plugin stands on."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from eagle3_serving.errors import InputError
from eagle3_serving.serve.server import Server
from eagle3_serving.serve.sglang import SglangOptions, sglang_command, sglang_python
from eagle3_serving.serve.sglang_client import SglangClient
from eagle3_serving.serve.shape import Shape

MAX_TOKENS = 32
OWN = Shape(3, 2, 6)


@pytest.fixture(scope="module", autouse=True)
def installed() -> None:
    try:
        sglang_python()
    except InputError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def plain(target_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SglangClient]:
    log = tmp_path_factory.mktemp("plain") / "server.log"
    command = sglang_command(SglangOptions(target_dir))
    with Server(command, log) as server, SglangClient(server.url, target_dir) as client:
        yield client


def test_its_own_tree_says_what_plain_decoding_says(
    plain: SglangClient, target_dir: Path, drafter_dir: Path, prompts: tuple[str, ...], tmp_path: Path
) -> None:
    command = sglang_command(SglangOptions(target_dir, drafter_dir, OWN, plugin=False))
    asked = prompts[:8]
    with Server(command, tmp_path / "server.log") as server, SglangClient(server.url, target_dir) as client:
        said, _ = client.ask_all(asked, MAX_TOKENS, concurrency=4)
        spent = client.counters()
    expected, _ = plain.ask_all(asked, MAX_TOKENS, concurrency=4)
    assert [answer.token_ids for answer in said] == [answer.token_ids for answer in expected]
    assert spent.drafts > 0 and spent.accepted == sum(spent.accepted_by_position)
    assert spent.accepted_length > 1.2
    assert plain.counters().drafts == 0
