"""Real SGLang over two ranks: one rank's tokens, and one rank's drafts.

The ranks are processes of this machine that talk over gloo, and share a small random pair. The embedded engine says what one
rank says, and how much of its drafts is accepted.
"""

import os
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from benchmarks.small_pair import VOCAB
from eagle3_serving.engine import DecodeOptions, EmbeddedEngine
from eagle3_serving.errors import InputError
from eagle3_serving.serve.server import Server
from eagle3_serving.serve.sglang import SglangOptions, sglang_command, sglang_python
from eagle3_serving.serve.shape import Shape

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

RANKS, MAX_TOKENS = 2, 14
SMALL, LARGE = Shape(2, 4, 6), Shape(4, 4, 12)


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ranks") / "server.log"


@pytest.fixture(scope="module")
def url(pair: tuple[Path, Path], log: Path) -> Iterator[str]:
    """Each step another tree, the same on both ranks. A core a rank, as far as there are so many: without being told
    SGLang takes a NUMA node for each."""
    try:
        sglang_python()
    except InputError as error:
        pytest.skip(str(error))
    options = SglangOptions(
        *pair, choice="cycle", trees=f"{SMALL};{LARGE}", max_requests=4, context=256, kv_tokens=2048
    )
    command = sglang_command(
        replace(options, radix_cache=True, tensor_parallel=RANKS, extra=("--skip-tokenizer-init",))
    )
    cpus = sorted(os.sched_getaffinity(0))
    bound = {"SGLANG_CPU_OMP_THREADS_BIND": "|".join(str(cpus[rank % len(cpus)]) for rank in range(RANKS))}
    with Server(replace(command, environment={**command.environment, **bound}), log) as server:
        yield server.url


def texts() -> list[list[int]]:
    drawn = random.Random(5)
    return [[drawn.randrange(VOCAB) for _ in range(n)] for n in (5, 40, 11)]


def ask(url: str, text: list[int], **fields: Any) -> dict[str, Any]:
    sampling = {"max_new_tokens": MAX_TOKENS, "temperature": 0.0, "ignore_eos": True, "custom_params": fields or None}
    reply = httpx.post(f"{url}/generate", json={"input_ids": text, "sampling_params": sampling}, timeout=120.0)
    said: dict[str, Any] = reply.raise_for_status().json()
    return said


@pytest.mark.supports("sglang", "tree", "tensor parallelism")
def test_trees_over_two_ranks_are_one_ranks(url: str, one: EmbeddedEngine, log: Path) -> None:
    """Alone, with the smaller tree at each step: what is accepted. Together, with both: what is said."""
    small = DecodeOptions(MAX_TOKENS, "tree", nodes=SMALL.tokens - 1, depth=SMALL.steps, top_k=SMALL.top_k, eos_ids=())
    expected = [one.generate(text, small) for text in texts()]
    for text, alone in zip(texts(), expected, strict=True):
        said = ask(url, text, eagle3_draft_tokens=SMALL.tokens - 1)
        assert said["output_ids"] == list(alone.token_ids)
        assert said["meta_info"]["spec_verify_ct"] == len(alone.accepted)
    with ThreadPoolExecutor(len(texts())) as pool:
        together = list(pool.map(lambda text: ask(url, text), texts()))
    assert [said["output_ids"] for said in together] == [list(alone.token_ids) for alone in expected]
    assert sum(said["meta_info"]["spec_num_correct_drafts"] for said in together) > 0
    assert f"eagle3: trees {SMALL}; {LARGE}" in log.read_text()


@pytest.mark.supports("sglang", "tree", "prefix cache")
def test_a_text_is_found_again_with_its_answer_and_without_what_was_rejected(url: str, one: EmbeddedEngine) -> None:
    """All but the last token or two, of which none is cached before the next is known."""
    for text in texts():
        answer = one.generate(text, DecodeOptions(2 * MAX_TOKENS, "chain", k=3, eos_ids=())).token_ids
        ask(url, text)
        said = ask(url, [*text, *answer[:MAX_TOKENS]])
        assert said["output_ids"] == list(answer[MAX_TOKENS:])
        assert said["meta_info"]["cached_tokens"] >= len(text) + MAX_TOKENS - 2
