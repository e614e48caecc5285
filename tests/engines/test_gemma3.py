"""Gemma 3 in real engines: a small random one, whose windows are short, under chains and trees; plain decoding's tokens."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import passes
import pytest
import torch
import transformers

from benchmarks.vllm_engine import Job, Round, run
from eagle3_serving.checkpoint.save import save_drafter
from eagle3_serving.drafter import Drafter, DrafterConfig
from eagle3_serving.engine import DecodeOptions, EmbeddedEngine
from eagle3_serving.engine.target import Target
from eagle3_serving.errors import InputError
from eagle3_serving.serve.server import Server
from eagle3_serving.serve.sglang import SglangOptions, sglang_command, sglang_python
from eagle3_serving.serve.shape import Shape

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

VOCAB, WINDOW, LAYERS = 24, 24, 6  # few tokens: a random draft is often right
PROMPTS = [
    [(7 * n + 3 * n * n) % VOCAB for n in range(first, first + length)] for first, length in ((1, 60), (5, 9), (40, 33))
]
TOKENS = 32  # more than a window
LOUD = 5.0


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gemma3")
    torch.manual_seed(0)
    config = transformers.Gemma3TextConfig(
        vocab_size=VOCAB,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=LAYERS,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        query_pre_attn_scalar=32,
        max_position_embeddings=512,
        sliding_window=WINDOW,
        layer_types=(["sliding_attention"] * 2 + ["full_attention"]) * 2,
        initializer_range=0.2,
        bos_token_id=2,
        eos_token_id=1,
        pad_token_id=0,
        dtype="float32",
    )
    model = transformers.Gemma3ForCausalLM(config)
    for name, parameter in model.named_parameters():
        if "layernorm" in name and "post" in name:
            parameter.data.fill_(LOUD)  # else each token says itself: the scaled embedding drowns what layers add
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def drafter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gemma3-drafter")
    torch.manual_seed(1)
    sizes = {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 32,
    }
    made = Drafter(
        DrafterConfig(**sizes, vocab_size=VOCAB, draft_vocab_size=VOCAB, target_hidden_size=64, aux_layers=(1, 3, 5))
    )
    for parameter in made.parameters():
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=0.1)
    save_drafter(made, folder, to="vllm")
    return folder


@pytest.fixture(scope="module")
def expected(target: Path) -> list[list[int]]:
    """The embedded engine's, which is held to transformers elsewhere; without windows they would be others."""
    narrow = Target.load(target)
    said = plain(narrow)
    narrow.model.config.sliding_window = 512
    assert all(mine != wide for mine, wide in zip(said, plain(Target(narrow.model)), strict=True))
    return said


def plain(target: Target) -> list[list[int]]:
    said = EmbeddedEngine(target).generate_many(PROMPTS, DecodeOptions(TOKENS, "plain", eos_ids=()), 3)
    return [list(one.token_ids) for one in said]


def on_vllm(target: Path, drafter: Path, runner: int, nodes: int, **settings: str) -> dict[str, Any]:
    pytest.importorskip("vllm")
    asked = Round(PROMPTS, {"temperature": 0, "max_tokens": TOKENS, "ignore_eos": True})
    engine = {"skip_tokenizer_init": True, "max_model_len": 256, "max_num_seqs": 3, "max_num_batched_tokens": 48}
    return run(Job(target, [asked], drafter, nodes=nodes, runner=runner, engine=engine, settings=settings))


@pytest.mark.supports("vllm", "chain", "targets with sliding windows: Gemma 3")
def test_chains_on_vllm(target: Path, drafter: Path, expected: list[list[int]]) -> None:
    said = on_vllm(target, drafter, runner=1, nodes=3)
    assert said["rounds"][0]["tokens"] == expected
    assert said["metrics"]["vllm:spec_decode_num_drafts"] > 0


@pytest.mark.supports("vllm", "tree", "targets with sliding windows: Gemma 3")
def test_trees_on_vllm_slide_each_row_by_its_depth(target: Path, drafter: Path, expected: list[list[int]]) -> None:
    said = on_vllm(target, drafter, runner=2, nodes=20, EAGLE3_TREE_DEPTH="3", EAGLE3_TREE_TOP_K="8")
    assert said["rounds"][0]["tokens"] == expected
    assert "eagle3: trees of 20 nodes, depth 3" in said["log"]
    assert said["metrics"]["vllm:spec_decode_num_accepted_tokens"] > 0


@pytest.mark.supports("sglang", "tree", "targets with sliding windows: Gemma 3")
def test_trees_on_sglang_see_whole_features_and_slide_each_row_by_its_depth(
    target: Path, drafter: Path, expected: list[list[int]], tmp_path: Path
) -> None:
    """As many tokens of each pass are accepted as on the embedded engine: a drafter that is given other features drafts others."""
    try:
        sglang_python()
    except InputError as error:
        pytest.skip(str(error))
    options = SglangOptions(
        target,
        drafter,
        Shape(3, 4, 16),
        choice="cycle",  # of one tree: a request that accepts little is drafted for all the same
        max_requests=4,
        context=256,
        kv_tokens=2048,
        extra=("--skip-tokenizer-init",),
    )
    with Server(sglang_command(options), tmp_path / "server.log") as server, ThreadPoolExecutor(3) as together:
        said = list(together.map(lambda prompt: passes.ask(server.url, prompt, TOKENS), PROMPTS))
    assert [one["output_ids"] for one in said] == expected
    same = DecodeOptions(TOKENS, "tree", nodes=15, depth=3, top_k=4, eos_ids=())
    counts = passes.of_embedded(EmbeddedEngine.load(target, drafter), PROMPTS, same)
    assert [passes.of_reply(one) for one in said] == counts
    assert sum(sum(by_number[1:]) for by_number in counts) > 10, counts
