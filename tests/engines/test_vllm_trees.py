"""Real vLLM with trees, on Model Runner V2: never another token than plain vLLM's, whatever the scheduler does.

One engine a tree size, in a process of its own, through Triton's interpreter. The sweep over many prompts is
`benchmarks/vllm_trees.py`.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.vllm_engine import Job, Round, run
from eagle3_serving.engine import DecodeOptions, EmbeddedEngine, Sampling
from eagle3_serving.engine.batch import Batch
from eagle3_serving.eval.law import PROMPTS, compare
from eagle3_serving.targets.chat import chat_ids, load_tokenizer
from eagle3_serving.tree import Noise

pytest.importorskip("vllm")
from eagle3_vllm.schedule import Profile

pytestmark = [pytest.mark.engine, pytest.mark.timeout(1200)]

TOGETHER, SPECIAL, ABORTED = range(3)
OFF, MOST = (
    3,
    4,
)  # of the first round, not those that fill the cache: one that asks for no drafts, one for three a step at most
GATED = 12  # of 32 sampled requests in flight together
WARM, COLD = 0.8, 0.05  # cold: nearly the likeliest token each time
MANY = {"max_num_seqs": 32, "max_model_len": 128, "max_num_batched_tokens": 512}
SCHEMA = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
SPECIAL_PARAMS: tuple[dict[str, Any], ...] = (
    {"logprobs": 2},
    {"repetition_penalty": 1.3, "presence_penalty": 0.5},
    {"structured_outputs": {"json": SCHEMA}},
    {"logit_bias": {"253": 4.0}},
)


def greedy(tokens: int, **more: Any) -> dict[str, Any]:
    return {"temperature": 0, "max_tokens": tokens, **more}


def spread(target_dir: Path, temperature: float, gated: int = 0) -> Round:
    """Draws of one prompt, few, for Triton's interpreter is slow: the second token is the first that a draft can touch. The
    first `gated` of them ask for no drafts."""
    ids: list[int] = load_tokenizer(target_dir)(PROMPTS[0])["input_ids"]
    drawn = {"temperature": temperature, "max_tokens": 2, "ignore_eos": True}
    return Round([ids] * 32, [{**drawn, "extra_args": {"eagle3": "off"}}] * gated + [drawn] * (32 - gated))


def assert_plain_decodings_law(said: dict[str, Any], plain: dict[str, Any]) -> None:
    """Of the last round; another temperature's law would be found. The engines' noise is the same each time."""
    mine, warm, cold = said["rounds"][-1]["tokens"], *(part["tokens"] for part in plain["rounds"][-2:])
    assert compare([warm], [mine]) > 1e-2
    assert compare([cold], [mine]) < 1e-2


@pytest.fixture(scope="module")
def rounds(target_dir: Path, prompts: tuple[str, ...]) -> list[Round]:
    tokenizer = load_tokenizer(target_dir)
    ids = [chat_ids(tokenizer, prompt) for prompt in prompts]
    long = chat_ids(tokenizer, " ".join(prompts[:8]))
    # the first three want more blocks than there are before they end; the fourth repeats the first
    texts = [long, ids[5], ids[18], long, ids[0], ids[1]]
    lengths = [32, 32, 32, 6, 9, 5]  # much of a tree is accepted: shorter ones may end before they want more
    asked = [greedy(n, ignore_eos=True) for n in lengths]
    asked[OFF]["extra_args"], asked[MOST]["extra_args"] = {"eagle3": "off"}, {"eagle3_draft_tokens": 3}
    return [
        Round(texts, asked),
        Round(ids[8:12], [greedy(8, **more) for more in SPECIAL_PARAMS]),
        Round(ids[:3], greedy(12, ignore_eos=True), abort={0: 3, 2: 4}),
    ]


@pytest.fixture(scope="module")
def plain(target_dir: Path, rounds: list[Round]) -> dict[str, Any]:
    return run(Job(target_dir, [*rounds[:2], spread(target_dir, WARM), spread(target_dir, COLD)], runner=1))


@pytest.fixture(scope="module")
def tree(target_dir: Path, drafter_dir: Path, rounds: list[Round]) -> dict[str, Any]:
    """A KV cache of 12 blocks for three requests that come to want more, and prompts cut into chunks of 96 tokens."""
    engine = {
        "max_num_seqs": 3,
        "max_num_batched_tokens": 96,
        "block_size": 32,
        "num_gpu_blocks_override": 13,
        "enable_prefix_caching": True,
        "max_model_len": 320,
        "per_request_spec_decode_metrics": "detailed",  # vLLM's own fields, which clients read
    }
    return run(Job(target_dir, rounds, drafter_dir, nodes=16, engine=engine))


@pytest.mark.supports(
    "vllm", "tree", "greedy decoding", "continuous batching", "preemption", "prefix cache", "chunked prefill"
)
def test_requests_that_join_leave_are_preempted_share_a_prefix_and_come_in_chunks(
    plain: dict[str, Any], tree: dict[str, Any]
) -> None:
    assert tree["rounds"][TOGETHER]["tokens"] == plain["rounds"][TOGETHER]["tokens"]
    assert tree["metrics"]["vllm:num_preemptions"] > 0
    assert tree["metrics"]["vllm:prefix_cache_hits"] > 0


@pytest.mark.supports("vllm", "tree", "drafts by request")
def test_a_request_that_asks_for_no_drafts_gets_none_among_others_that_do(tree: dict[str, Any]) -> None:
    """Its tokens are plain decoding's all the same, as the round's are."""
    drafted, accepted = tree["rounds"][TOGETHER]["drafted"], tree["rounds"][TOGETHER]["accepted"]
    assert not drafted[OFF]
    assert set(drafted[MOST]) == {3} and sum(accepted[MOST]) > 0
    assert max(drafted[0]) == 16
    assert tree["metrics"]["vllm:eagle3_gated_steps{reason=request}{rows=own}"] >= 5


@pytest.mark.supports("vllm", "tree", "logit bias")
@pytest.mark.supports("vllm", "chain in a tree", "penalties", "grammars")
@pytest.mark.parametrize("place", range(len(SPECIAL_PARAMS)), ids=["logprobs", "penalties", "grammar", "logit bias"])
def test_what_a_chain_does_a_tree_does(plain: dict[str, Any], tree: dict[str, Any], place: int) -> None:
    assert tree["rounds"][SPECIAL]["tokens"][place] == plain["rounds"][SPECIAL]["tokens"][place]


@pytest.mark.supports("vllm", "tree", "logprobs")
def test_logprobs_are_those_of_the_path(plain: dict[str, Any], tree: dict[str, Any]) -> None:
    said, expected = (side["rounds"][SPECIAL]["logprobs"][0] for side in (tree, plain))
    assert len(said) == len(expected)
    for mine, theirs in zip(said, expected, strict=True):
        assert mine == pytest.approx(theirs, abs=1e-3)


@pytest.mark.supports("vllm", "tree", "aborted requests")
def test_nothing_leaks_and_nothing_is_in_the_log(tree: dict[str, Any]) -> None:
    assert tree["rounds"][ABORTED]["tokens"][0] is None and len(tree["rounds"][ABORTED]["tokens"][1]) == 12
    assert tree["blocks"][0] == tree["blocks"][1]
    assert "ERROR" not in tree["log"] and "Traceback" not in tree["log"]
    assert "eagle3: trees of 16 nodes" in tree["log"]


@pytest.mark.supports("vllm", "tree", "metrics")
def test_trees_are_what_was_verified(tree: dict[str, Any]) -> None:
    metrics = tree["metrics"]
    assert metrics["vllm:eagle3_accepted_length"] > 1.5
    # a chain of the tree's depth has 8 nodes
    assert metrics["vllm:eagle3_nodes_verified"] > 10 * metrics["vllm:eagle3_verify_passes"]
    assert metrics["vllm:eagle3_nodes_budgeted"] >= metrics["vllm:eagle3_nodes_verified"]
    for reason in ("penalties", "grammar"):
        assert metrics[f"vllm:eagle3_fallbacks{{reason={reason}}}{{scope=request}}"] == 1


@pytest.mark.supports(
    "vllm", "tree", "a tree chosen by load", "fp8 weights of the drafter", "vLLM's per-request speculation metrics"
)
def test_the_tree_changes_with_the_load_and_no_token_does(
    target_dir: Path, drafter_dir: Path, rounds: list[Round], plain: dict[str, Any], tmp_path: Path
) -> None:
    """Three in flight draft nothing, two a chain, one a tree: what the costs say. The last requests end alone."""
    costs = {1: {0: 1.0, 3: 2.0, 8: 1.0}, 2: {0: 1.0, 3: 1.0, 8: 9.0}, 3: {0: 1.0, 3: 9.0, 8: 9.0}}
    Profile((0.5,), costs, {}).save(tmp_path / "profile.json")
    settings = {"EAGLE3_TREES": "0;3,1,4;4,4,9", "EAGLE3_PROFILE": str(tmp_path / "profile.json")}
    settings["EAGLE3_DRAFTER_WEIGHTS"] = "fp8"  # nor does it where the drafter is rounded
    engine: dict[str, Any] = {"max_num_seqs": 3, "max_num_batched_tokens": 96, "max_model_len": 320}
    engine["per_request_spec_decode_metrics"] = "detailed"  # vLLM's own fields, which clients read
    lengths = (20, 13, 5)  # they end one after the other
    asked = Round(rounds[TOGETHER].prompts[:3], [greedy(n, ignore_eos=True) for n in lengths])
    said = run(Job(target_dir, [asked], drafter_dir, nodes=8, engine=engine, settings=settings))
    expected = plain["rounds"][TOGETHER]["tokens"]
    assert said["rounds"][0]["tokens"] == [expected[place][:n] for place, n in enumerate(lengths)]
    assert "eagle3: ms a step at 3 in flight: 0,1,1 1000.00, 3,1,4 9000.00, 4,4,9 9000.00" in said["log"]
    assert "eagle3: 9 of the drafter's layers in fp8, 9.9 MB for 39.2" in said["log"]
    # the longest had chains of three verified, then trees of eight, and steps before in which nothing was drafted
    drafted, accepted = (said["rounds"][0][name][0] for name in ("drafted", "accepted"))
    assert drafted == sorted(drafted) and set(drafted) == {3, 8}
    assert sum(accepted) > 0 and sum(accepted) + len(accepted) < lengths[0] - 1


WINDOW = 32  # tokens


@pytest.fixture(scope="module")
def windowed(drafter_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The drafter, looking back a window."""
    folder = tmp_path_factory.mktemp("windowed") / "drafter"
    shutil.copytree(drafter_dir, folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"sliding_window": WINDOW, "layer_types": ["sliding_attention"]}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def long_text(target_dir: Path, prompts: tuple[str, ...]) -> Round:
    """Of some windows, and enough drafts that a drafter without one accepts other numbers."""
    ids = chat_ids(load_tokenizer(target_dir), " ".join(prompts[8:12]))
    assert len(ids) > 2 * WINDOW
    return Round([ids], greedy(20, ignore_eos=True))


def accepted_by_the_embedded_engine(target: Path, drafter: Path, asked: Round, **shape: Any) -> list[int]:
    engine = EmbeddedEngine.load(target, drafter)
    return list(engine.generate(asked.prompts[0], DecodeOptions(20, eos_ids=(), **shape)).accepted)


class TheirNoise(Noise):
    """Of 32 bits, as vLLM's sampler draws unless it is told otherwise."""

    def gumbel(self, ahead: int, ids_V: Tensor, wide: bool = True) -> Tensor:
        return super().gumbel(ahead, ids_V, wide=False)


def seeded_on_the_embedded_engine(
    monkeypatch: pytest.MonkeyPatch, target: Path, drafter: Path, asked: Round, count: int, **shape: Any
) -> tuple[list[list[int]], list[list[int]]]:
    """Tokens and accepted drafts of the first `count` requests, each by the noise of its seed."""
    engine, tokens, accepted = EmbeddedEngine.load(target, drafter), [], []
    for place in range(count):
        params = {**asked.params[place]}  # type: ignore[index]
        seed, length, _ = (params.pop(name) for name in ("seed", "max_tokens", "ignore_eos"))

        def noise(_: Batch, indices: Any, positions: list[int], seed: int = seed) -> Noise:
            return TheirNoise(torch.full((len(positions),), seed), torch.tensor(positions))

        monkeypatch.setattr(Batch, "noise", noise)
        options = DecodeOptions(length, eos_ids=(), sampling=Sampling(**params), **shape)
        said = engine.generate(asked.prompts[place], options)
        tokens.append(list(said.token_ids))
        accepted.append(list(said.accepted))
    return tokens, accepted


@pytest.mark.supports(
    "vllm", "tree", "a drafter's sliding window", "seeds", "top-k, top-p", "min-p", "sampling by the target's law"
)
def test_a_seed_gives_the_same_samples_with_and_without_trees(
    monkeypatch: pytest.MonkeyPatch,
    target_dir: Path,
    drafter_dir: Path,
    windowed: Path,
    plain: dict[str, Any],
    prompts: tuple[str, ...],
) -> None:
    """At every temperature: acceptance draws at each row what plain decoding would draw there, and what is drafted by the
    same noise is what the embedded engine would draft by it. A drafter with a window drafts what it drafts there, on a text
    longer than that."""
    tokenizer = load_tokenizer(target_dir)
    texts = [
        chat_ids(tokenizer, text) for text in ("Tell me a story.", "Count to ten.", "Name a colour.", "Name a fruit.")
    ]
    off = {"extra_args": {"eagle3": "off"}}  # among others that are drafted
    filters: tuple[dict[str, Any], ...] = ({}, {"top_k": 20, "top_p": 0.9}, {"min_p": 0.05}, off)
    seeded_so = {"temperature": 0.9, "max_tokens": 12, "ignore_eos": True}
    params = [{**seeded_so, "seed": n, **more} for n, more in enumerate(filters)]
    seeded = Round(texts, params)
    # drawn by the kernels that a GPU would run, which the interpreter is slow with
    settings = {"EAGLE3_TREE_DEPTH": "3", "EAGLE3_TREE_TOP_K": "4", "EAGLE3_KERNELS": "1"}
    long = long_text(target_dir, prompts)
    engine = {**MANY, "per_request_spec_decode_metrics": "detailed"}
    expected = run(Job(target_dir, [seeded], engine=MANY, settings=settings))
    mixed = Round([*seeded.prompts, *long.prompts], [*params, long.params])  # type: ignore[list-item]
    asked = [mixed, spread(target_dir, WARM)]
    said = run(Job(target_dir, asked, windowed, 5, engine=engine, settings=settings))
    drawn, accepted = said["rounds"][0]["tokens"][:4], said["rounds"][0]["accepted"]
    assert drawn == expected["rounds"][0]["tokens"]
    assert said["metrics"]["vllm:eagle3_tokens_accepted"] > 0
    assert [bool(drafted) for drafted in said["rounds"][0]["drafted"]] == [True, True, True, False, True]
    tree: dict[str, Any] = {"mode": "tree", "nodes": 5, "depth": 3, "top_k": 4}
    on_ours = monkeypatch, target_dir, windowed, seeded, 3
    tokens, coupled = seeded_on_the_embedded_engine(*on_ours, **tree)
    assert tokens == drawn[:3]
    assert [one[:-1] for one in coupled] == [one[:-1] for one in accepted[:3]]
    _, top = seeded_on_the_embedded_engine(*on_ours, **tree, proposals="top")
    assert coupled != top
    assert "likeliest tokens are drafted" not in said["log"]
    monkeypatch.undo()
    greedily = accepted[4]
    assert greedily[:-1] == accepted_by_the_embedded_engine(target_dir, windowed, long, **tree)[:-1]
    other = accepted_by_the_embedded_engine(target_dir, drafter_dir, long, **tree)
    assert greedily[:-1] != other[: len(greedily) - 1]
    assert_plain_decodings_law(said, plain)


def test_a_chain_of_vllms_own_keeps_the_law(
    target_dir: Path, windowed: Path, plain: dict[str, Any], prompts: tuple[str, ...]
) -> None:
    """What serves where trees cannot: vLLM's chain and its rejection, over our drafter, whose window holds there too."""
    long = long_text(target_dir, prompts)
    engine = {**MANY, "per_request_spec_decode_metrics": "detailed"}
    asked = [long, spread(target_dir, WARM, gated=GATED)]
    said = run(Job(target_dir, asked, windowed, 2, engine=engine, settings={"EAGLE3_MODE": "chain"}))
    chain = {"mode": "chain", "k": 2}
    assert (
        said["rounds"][0]["accepted"][0][:-1]
        == accepted_by_the_embedded_engine(target_dir, windowed, long, **chain)[:-1]
    )
    assert_plain_decodings_law(said, plain)
    drafted = said["rounds"][-1]["drafted"]
    assert not any(drafted[:GATED]) and any(drafted[GATED:])
    assert said["metrics"]["vllm:spec_decode_num_accepted_tokens"] > 0
