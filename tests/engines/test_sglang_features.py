"""Targets beyond a plain Llama on real SGLang with trees. Plain decoding is the embedded engine's: a server more would say the same."""

import random
from pathlib import Path

import odd_targets
import passes
import pytest

from eagle3_serving.engine import DecodeOptions, EmbeddedEngine
from eagle3_serving.errors import InputError
from eagle3_serving.serve.server import Server
from eagle3_serving.serve.sglang import SglangOptions, sglang_command, sglang_python
from eagle3_serving.serve.shape import Shape

TOKENS, WINDOW = 24, 8


@pytest.mark.engine
@pytest.mark.supports(
    "sglang",
    "tree",
    "targets with experts: Qwen3-MoE",
    "grouped heads, 8 queries a key (8:1)",
    "drafters with a sliding window",
)
def test_experts_and_eight_query_heads_a_key_head_and_a_drafters_window(tmp_path: Path) -> None:
    """Of a drafter that looks back 8 tokens as much is accepted as on the embedded engine; of one that looked back all, other drafts."""
    try:
        sglang_python()
    except InputError as error:
        pytest.skip(str(error))
    target = odd_targets.drawn(tmp_path / "target", "experts, eight query heads a key head")
    drafter = odd_targets.drawn_drafter(tmp_path / "drafter", WINDOW)
    dice = random.Random(3)
    prompts = [[dice.randrange(odd_targets.VOCAB) for _ in range(length)] for length in (40, 70, 9)]
    options = SglangOptions(
        target, drafter, Shape(3, 4, 12), max_requests=4, context=256, kv_tokens=2048, extra=("--skip-tokenizer-init",)
    )
    with Server(sglang_command(options), tmp_path / "server.log") as server:
        said = [passes.ask(server.url, prompt, TOKENS) for prompt in prompts]
        log = (tmp_path / "server.log").read_text()
    assert f"the drafter looks back {WINDOW} tokens: --speculative-draft-window-size {WINDOW - 1}" in log
    plain = EmbeddedEngine.load(target).generate_many(prompts, DecodeOptions(TOKENS, "plain", eos_ids=()), 3)
    assert [one["output_ids"] for one in said] == [list(answer.token_ids) for answer in plain]
    counts = [passes.of_reply(one) for one in said]
    assert sum(sum(by_number[1:]) for by_number in counts) > 5, counts  # that something was accepted in
    whole = odd_targets.drawn_drafter(tmp_path / "whole")
    same = DecodeOptions(TOKENS, "tree", nodes=11, depth=3, top_k=4, eos_ids=())
    windowed, unbounded = (
        passes.of_embedded(EmbeddedEngine.load(target, path), prompts, same) for path in (drafter, whole)
    )
    assert counts == windowed != unbounded
