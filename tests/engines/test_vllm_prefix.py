"""What real vLLM keeps of a text for later requests, under trees: its prefix cache, and a KV connector.

On a small random pair, of whose drafts some are accepted and most are not; the embedded engine says what plain decoding says.
"""

import random
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from benchmarks.small_pair import PLAIN, VOCAB
from benchmarks.vllm_engine import Job, Round, run
from benchmarks.vllm_prefix import HITS, QUERIES
from eagle3_serving.engine import DecodeOptions, EmbeddedEngine
from eagle3_serving.serve.server import HOST, claim_port

pytest.importorskip("vllm")

pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]

BLOCK, NODES = 32, 16
FIRST, SECOND = 2 * BLOCK, 12  # tokens of an answer, and of what follows it: whole blocks of it are found again
ENGINE: dict[str, Any] = {
    **PLAIN,
    "block_size": BLOCK,
    "max_num_seqs": 4,
    "max_num_batched_tokens": 256,
    "per_request_spec_decode_metrics": "detailed",
}
CACHED = {**ENGINE, "enable_prefix_caching": True}


def texts() -> list[list[int]]:
    """Of three blocks that they share, and some more."""
    drawn = random.Random(3)
    shared, *rest = ([drawn.randrange(VOCAB) for _ in range(n)] for n in (3 * BLOCK, 9, 2, 17))
    return [[*shared, *more] for more in rest]


def asked(prompts: list[list[int]], tokens: int, **more: Any) -> Round:
    return Round(prompts, {"temperature": 0, "max_tokens": tokens, "ignore_eos": True, "detokenize": False, **more})


def alone(one: EmbeddedEngine, prompts: list[list[int]], tokens: int) -> list[Any]:
    """Trees of the same size, nothing found again."""
    options = DecodeOptions(tokens, "tree", nodes=NODES, depth=8, eos_ids=())
    return [one.generate(prompt, options) for prompt in prompts]


def found_again(said: dict[str, Any]) -> float:
    return float(said["metrics"][HITS] / said["metrics"][QUERIES])


@pytest.mark.supports("vllm", "tree", "prefix cache")
def test_trees_find_what_the_chain_finds_and_nothing_that_was_rejected(
    pair: tuple[Path, Path], one: EmbeddedEngine
) -> None:
    """Each text; then with its answer, of which the cache holds what was drafted, verified and moved there."""
    plain = [list(said.token_ids) for said in alone(one, texts(), FIRST + SECOND)]
    again = [[*text, *answer[:FIRST]] for text, answer in zip(texts(), plain, strict=True)]
    rounds = [asked(texts()[:1], FIRST), asked(texts()[1:], FIRST), asked(again, SECOND)]
    trees = run(Job(pair[0], rounds, pair[1], NODES, engine=CACHED))
    chain = run(Job(pair[0], rounds, pair[1], 3, 1, CACHED, settings={"EAGLE3_MODE": "vllm"}))
    for said in (trees, chain):
        first, others, then = (part["tokens"] for part in said["rounds"])
        assert [*first, *others] == [answer[:FIRST] for answer in plain]
        assert then == [answer[FIRST:] for answer in plain]
    # all that is there: the shared blocks, then all whole blocks but one that would leave no row to compute
    assert trees["metrics"][HITS] == sum([3 * BLOCK * 2, *((len(text) - 1) // BLOCK * BLOCK for text in again)])
    assert found_again(trees) > found_again(chain)  # which gives a block of each back
    # as much is accepted as where the drafter has read all of it itself
    accepted = [list(said.accepted) for said in alone(one, again, SECOND)]
    assert [told[:-1] for told in trees["rounds"][2]["accepted"]] == [told[:-1] for told in accepted]
    assert sum(map(sum, accepted)) > 0
    assert trees["blocks"][0] == trees["blocks"][1]


@pytest.mark.supports("vllm", "tree", "a KV connector that stores prompts (ExampleConnector)")
def test_a_connector_gives_back_the_rows_of_target_and_drafter(
    pair: tuple[Path, Path], one: EmbeddedEngine, tmp_path: Path
) -> None:
    """On a disk, nothing in vLLM's own cache: the second time no row of these prompts but the last few is computed."""
    stored = {"kv_connector": "ExampleConnector", "kv_role": "kv_both"}
    transfer = {**stored, "kv_connector_extra_config": {"shared_storage_path": str(tmp_path)}}
    rounds = [asked(texts(), SECOND)] * 2
    whole = {"max_num_batched_tokens": 512}  # that connector stores a prompt when its first chunk is read
    said = run(Job(pair[0], rounds, pair[1], NODES, engine={**ENGINE, **whole, "kv_transfer_config": transfer}))
    alike = alone(one, texts(), SECOND)
    for part in said["rounds"]:
        assert part["tokens"] == [list(each.token_ids) for each in alike]
        assert [told[:-1] for told in part["accepted"]] == [list(each.accepted)[:-1] for each in alike]
    assert said["metrics"]["vllm:external_prefix_cache_hits"] == 3 * len(texts()) * BLOCK
    assert len({file.name for file in tmp_path.rglob("eagle3.*.safetensors")}) == 1  # the drafter's layer
    assert "eagle3: trees of 16 nodes" in said["log"]


@pytest.mark.supports("vllm", "tree", "a KV connector between prefill and decode servers (NixlConnector)")
def test_a_decode_server_goes_on_from_what_a_prefill_server_has_read(
    pair: tuple[Path, Path], one: EmbeddedEngine
) -> None:
    """The prompts' rows come over NIXL, the drafter's too. The prefill server needs the drafter, and one draft token."""
    if find_spec("nixl") is None:
        pytest.skip("nixl is not installed here: vLLM does not ask for it; pip install nixl")
    transfer = {"kv_connector": "NixlConnector", "kv_role": "kv_both", "kv_buffer_device": "cpu"}
    server = {**ENGINE, "kv_transfer_config": transfer}
    decode = Job(pair[0], [asked(texts(), SECOND)], pair[1], NODES, engine=server, settings=side_channel())
    read = asked(texts(), 1, extra_args={"kv_transfer_params": {"do_remote_decode": True}})
    prefill = Job(pair[0], [read], pair[1], 1, engine=server, settings=side_channel(), hands_on=decode)
    said = run(prefill)["handed_on"]
    alike = alone(one, texts(), SECOND)
    (part,) = said["rounds"]
    assert part["tokens"] == [list(each.token_ids) for each in alike]
    # the first token's step is given as many rows as any other, of which none was drafted
    assert [told[:-1] for told in part["accepted"]] == [[0, *each.accepted][:-1] for each in alike]
    assert said["metrics"]["vllm:external_prefix_cache_hits"] == sum(map(len, texts()))
    assert said["metrics"]["vllm:nixl_num_failed_transfers"] == 0
    assert said["blocks"][0] == said["blocks"][1]


def side_channel() -> dict[str, str]:
    """A port of this machine's own, by which two of NIXL's agents find each other."""
    return {"VLLM_NIXL_SIDE_CHANNEL_HOST": HOST, "VLLM_NIXL_SIDE_CHANNEL_PORT": str(claim_port())}
