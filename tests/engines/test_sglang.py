"""Real SGLang on this machine: its own EAGLE-3, and ours with a tree that changes at every step. No token may change."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from benchmarks.sglang_cases import FEATURES, PENALTIES, Body, ask_all, ask_and_hang_up, body
from benchmarks.sglang_sweep import Load
from eagle3_serving.errors import CheckError, InputError
from eagle3_serving.eval.law import BOUND, DRAWS, PROMPTS, TOKENS, Answers, compare
from eagle3_serving.serve.client import Answer
from eagle3_serving.serve.server import Server, ServerCommand
from eagle3_serving.serve.sglang import SglangOptions, on_cpu, sglang_command, sglang_python
from eagle3_serving.serve.sglang_client import SglangClient
from eagle3_serving.serve.shape import Shape
from eagle3_serving.targets.chat import chat_ids, load_tokenizer

MAX_TOKENS = 24
OWN = Shape(3, 2, 6)
WARM, COLD = 0.8, 0.05  # cold: nearly the likeliest token each time
TREES = "0;1,4,3;3,4,6;5,4,12"


@pytest.fixture(scope="module", autouse=True)
def installed() -> None:
    try:
        sglang_python()
    except InputError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def asked(target_dir: Path, prompts: tuple[str, ...]) -> dict[str, list[Body]]:
    """Feature -> requests; the same prompts, so that later features find their prefixes in the cache."""
    tokenizer = load_tokenizer(target_dir)
    ids = [chat_ids(tokenizer, prompt) for prompt in prompts]
    few = {name: [make(one, MAX_TOKENS) for one in ids[:4]] for name, make in FEATURES.items()}
    return {**few, "plain text": [body(one, MAX_TOKENS - 8 + index) for index, one in enumerate(ids[:12])]}


Spread = dict[float, list[Answers]]  # sampled answers by temperature


@pytest.fixture(scope="module")
def plain(
    target_dir: Path, asked: dict[str, list[Body]], tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, list[Answer]], Spread]:
    log = tmp_path_factory.mktemp("plain") / "server.log"
    command = sglang_command(SglangOptions(target_dir, radix_cache=True))
    with Server(command, log) as server, SglangClient(server.url, target_dir) as client:
        # stock SGLang was seen, on a crowded machine, to repeat what it had penalised where requests came and went beside it
        said = {name: ask_all(client, bodies, 1 if name in PENALTIES else 4) for name, bodies in asked.items()}
        spread = {temperature: sampled(client, temperature) for temperature in (WARM, COLD)}
        assert client.counters().drafts == 0
        return said, spread


def sampled(client: SglangClient, temperature: float) -> list[Answers]:
    return [client.draw(PROMPTS[0], DRAWS, TOKENS, temperature)]


@pytest.fixture(scope="module")
def expected(plain: tuple[dict[str, list[Answer]], Spread]) -> dict[str, list[Answer]]:
    return plain[0]


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("changing") / "server.log"


@pytest.fixture(scope="module")
def changing(
    target_dir: Path, drafter_dir: Path, log: Path, expected: dict[str, list[Answer]]
) -> Iterator[SglangClient]:
    """Every step another tree, no drafting among them. After `expected`: one server at a time."""
    options = SglangOptions(target_dir, drafter_dir, choice="cycle", radix_cache=True, max_requests=8, trees=TREES)
    with Server(sglang_command(options), log) as server, SglangClient(server.url, target_dir) as client:
        yield client


def tokens(answers: list[Answer]) -> list[tuple[int, ...]]:
    return [answer.token_ids for answer in answers]


@pytest.mark.parametrize("feature", FEATURES)
@pytest.mark.supports("sglang", "tree", "greedy decoding", "a tree chosen by load", "grammars", "stop strings")
@pytest.mark.supports("sglang", "plain", "penalties", "minimum length")
def test_changing_trees_change_no_token(
    feature: str, changing: SglangClient, asked: dict[str, list[Body]], expected: dict[str, list[Answer]]
) -> None:
    before = changing.counters()
    said = ask_all(changing, asked[feature], 8)
    assert tokens(said) == tokens(expected[feature])
    assert [answer.text for answer in said] == [answer.text for answer in expected[feature]]
    # SGLang relaxes penalties under speculation: such a batch drafts nothing, and its text is plain decoding's
    assert ((changing.counters() - before).accepted > 0) == (feature not in PENALTIES)


@pytest.mark.supports("sglang", "tree", "sampling by the target's law")
def test_sampled_answers_follow_the_law_whatever_the_tree(
    changing: SglangClient, plain: tuple[dict[str, list[Answer]], Spread], log: Path
) -> None:
    said, spread = sampled(changing, WARM), plain[1]
    assert compare(spread[WARM], said) > BOUND
    assert compare(spread[COLD], said) < BOUND  # another law would be found
    assert "sampled requests get the likeliest" not in log.read_text()


@pytest.mark.supports("sglang", "tree", "continuous batching", "prefix cache")
def test_a_request_alone_gets_the_same(
    changing: SglangClient, asked: dict[str, list[Body]], expected: dict[str, list[Answer]]
) -> None:
    assert tokens([changing.generate(request) for request in asked["plain text"][:2]]) == tokens(
        expected["plain text"][:2]
    )
    again = {**asked["plain text"][0], "stream": False}
    reply = httpx.post(f"{changing.url}/generate", json=again, timeout=120.0).json()
    assert reply["meta_info"]["cached_tokens"] > 0  # of the prefix that the same request left
    assert tuple(reply["output_ids"]) == expected["plain text"][0].token_ids


@pytest.mark.supports("sglang", "tree", "logprobs")
def test_logprobs_are_those_of_plain_decoding(
    changing: SglangClient, asked: dict[str, list[Body]], target_dir: Path
) -> None:
    request = {**asked["logprobs"][0], "stream": False}
    reply = httpx.post(f"{changing.url}/generate", json=request, timeout=120.0).json()
    logprobs = reply["meta_info"]["output_token_logprobs"]
    assert [entry[1] for entry in logprobs] == reply["output_ids"]
    assert all(entry[0] <= 0 for entry in logprobs)


@pytest.mark.supports("sglang", "tree", "streaming")
def test_the_answer_streams(changing: SglangClient, asked: dict[str, list[Body]]) -> None:
    pieces: list[str] = []
    answer = changing.generate(asked["plain text"][0], on_text=pieces.append)
    assert len(pieces) > 1 and "".join(pieces) == answer.text
    assert 0 < answer.first_token_s < answer.total_s


def test_a_sweep_counts_what_came_while_the_load_was_whole(
    changing: SglangClient, asked: dict[str, list[Body]], expected: dict[str, list[Answer]]
) -> None:
    lengths = [len(answer.token_ids) for answer in expected["plain text"][:6]]
    load = Load(changing, asked["plain text"][:6], 2)
    assert sum(lengths) - max(lengths) < load.tokens <= sum(lengths)
    assert load.seconds > 0 and load.length > 1


@pytest.mark.supports("sglang", "tree", "metrics")
def test_every_tree_was_verified_and_is_in_the_metrics(changing: SglangClient) -> None:
    metrics = httpx.get(f"{changing.url}/metrics", timeout=30.0).text
    passes = re.findall(
        r'^eagle3:verify_passes_total\{.*steps="(\d)",tokens="(\d+)",top_k="4".*\} (\S+)$', metrics, re.MULTILINE
    )
    assert {(int(steps), int(size)) for steps, size, count in passes if float(count) > 0} == {
        (0, 1), (1, 3), (3, 6), (5, 12),
    }  # fmt: skip
    length = re.search(r"^eagle3:accepted_length(?:\{.*\})? (\S+)$", metrics, re.MULTILINE)
    assert length is not None and float(length[1]) > 1.0


@pytest.mark.supports("sglang", "tree", "drafts by request")
def test_requests_are_drafted_or_not_as_they_ask(
    changing: SglangClient, asked: dict[str, list[Body]], expected: dict[str, list[Answer]]
) -> None:
    """None where all of a batch are off; some among others go with them. No token differs."""

    def asking(place: int, switch: str) -> Body:
        one = asked["plain text"][place]
        return {**one, "sampling_params": {**one["sampling_params"], "custom_params": {"eagle3": switch}}}

    def gated(rows: str) -> float:
        metrics = httpx.get(f"{changing.url}/metrics", timeout=30.0).text
        counts = re.findall(rf'^eagle3:gated_steps_total\{{.*rows="{rows}".*\}} (\S+)$', metrics, re.MULTILINE)
        return sum(map(float, counts))

    before = changing.counters()
    said = ask_all(changing, [asking(place, "off") for place in range(3)], 3)
    assert tokens(said) == tokens(expected["plain text"][:3])
    assert (changing.counters() - before).accepted == 0
    assert gated("own") > 0
    said = ask_all(changing, [asking(place, ("off", "on")[place % 2]) for place in range(4)], 4)
    assert tokens(said) == tokens(expected["plain text"][:4])
    assert (changing.counters() - before).accepted > 0
    assert gated("kept") > 0
    refused = httpx.post(f"{changing.url}/generate", json=asking(0, "maybe"), timeout=60.0)
    assert refused.status_code == 400 and "eagle3 is 'maybe': on or off" in refused.text


@pytest.mark.supports("sglang", "tree", "aborted requests")
def test_aborted_requests_give_their_cache_back(
    changing: SglangClient, asked: dict[str, list[Body]], log: Path
) -> None:
    ask_and_hang_up(changing.url, [body(request["input_ids"], 64) for request in asked["plain text"]], after=2)
    ask_all(changing, asked["plain text"][:2], 2)
    # SGLang checks its pools whenever it is idle, and says so where they leak
    assert httpx.get(f"{changing.url}/health_generate", timeout=120.0).status_code == 200
    assert not re.findall(r"memory leak|Traceback|ERROR", log.read_text())


def test_its_own_tree_says_what_plain_decoding_says(
    target_dir: Path,
    drafter_dir: Path,
    asked: dict[str, list[Body]],
    plain: tuple[dict[str, list[Answer]], Spread],
    expected: dict[str, list[Answer]],
    tmp_path: Path,
) -> None:
    options = SglangOptions(target_dir, drafter_dir, OWN, plugin=False)
    log = tmp_path / "server.log"
    with Server(sglang_command(options), log) as server, SglangClient(server.url, target_dir) as client:
        said = ask_all(client, asked["plain text"], 4)
        spent = client.counters()
        spread = sampled(client, WARM)
    assert tokens(said) == tokens(expected["plain text"])
    if on_cpu():  # where it draws the first token and then takes the argmax, whatever was asked
        [answers] = spread
        assert len(set(map(tuple, answers))) <= len({answer[0] for answer in answers}) + 2  # near ties
    assert spent.drafts > 0 and spent.accepted == sum(spent.accepted_by_position)
    assert spent.accepted_length > 1.2
    assert any(answer.accepted for answer in said)  # by pass, where each came as a piece of its own
    assert "eagle3: trees" not in log.read_text()  # what our worker says when it is ready


def test_what_our_worker_fails_at_leaves_sglangs_own(
    target_dir: Path,
    drafter_dir: Path,
    asked: dict[str, list[Body]],
    expected: dict[str, list[Answer]],
    doctored: Callable[[ServerCommand, str], ServerCommand],
    tmp_path: Path,
) -> None:
    """The last moment to give way: the worker is made, and its first tree cannot be built."""
    worker = "sglang.srt.speculative.eagle_worker_v2:EAGLEWorkerV2"
    command = doctored(sglang_command(SglangOptions(target_dir, drafter_dir)), f"-{worker}._override_worker_state")
    log = tmp_path / "server.log"
    with Server(command, log) as server, SglangClient(server.url, target_dir) as client:
        said = ask_all(client, asked["plain text"], 4)
        spent, text = client.counters(), log.read_text()
    assert tokens(said) == tokens(expected["plain text"])
    assert spent.accepted > 0
    [line] = [line for line in text.splitlines() if "eagle3: " in line and "no tree was asked for" not in line]
    assert "SGLang's own EAGLE3 serves" in line and "_override_worker_state" in line
    assert "Traceback" not in text


def test_a_drafter_sglang_would_read_wrongly_stops_the_server_with_one_line(
    target_dir: Path, renamed: Path, tmp_path: Path
) -> None:
    log = tmp_path / "server.log"
    with (
        pytest.raises(CheckError, match="ended at start"),
        Server(sglang_command(SglangOptions(target_dir, renamed)), log),
    ):
        pass
    [line] = [line for line in log.read_text().splitlines() if line.startswith("eagle3: ")]
    assert "down_proj" in line
    assert "Traceback" not in log.read_text() and "Load weight" not in log.read_text()


@pytest.fixture
def renamed(drafter_dir: Path, tmp_path: Path) -> Path:
    """The drafter with one tensor under a name that SGLang skips."""
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "renamed"
    folder.mkdir()
    (folder / "config.json").write_bytes((drafter_dir / "config.json").read_bytes())
    tensors = load_file(drafter_dir / "model.safetensors")
    [name] = [name for name in tensors if name.endswith("down_proj.weight")]
    tensors[name.replace("down_proj", "down_projection")] = tensors.pop(name)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder
