"""A piece of the long soak on one real engine: requests go in, answers come out, and what the engine holds before and after.

vLLM runs in a process of its own (`vllm_engine`), SGLang as a server that clients ask and hang up on. The KV pool is too small
for all that runs at once, so that requests are preempted.
"""

import json
import os
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.sglang_cases import ask_and_hang_up
from benchmarks.sglang_soak import WRONG, used_slots
from benchmarks.vllm_engine import Job, Round, run
from eagle3_serving.errors import CheckError
from eagle3_serving.serve.live import totals
from eagle3_serving.serve.server import Server
from eagle3_serving.serve.sglang import SglangOptions, sglang_command
from eagle3_serving.serve.sglang_client import SglangClient

MARK = "EAGLE3_SOAK"  # in the environment of a piece's processes
ABORTED_EVERY = 7
IN_FLIGHT = 24  # clients of SGLang
COUNTED = ("sglang:num_retracted_requests_total", "sglang:cached_tokens_total")
JSON = {"type": "object", "properties": {"sure": {"type": "boolean"}}, "required": ["sure"]}
# a kind's sampling in vLLM's words and in SGLang's
KINDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "greedy": ({}, {}),
    "T = 1": ({"temperature": 1.0}, {"temperature": 1.0}),
    "T = 1, top-p": ({"temperature": 1.0, "top_p": 0.9, "seed": 3}, {"temperature": 1.0, "top_p": 0.9}),
    "logprobs": ({"logprobs": 1}, {}),
    "repetition penalty": ({"repetition_penalty": 1.2}, {"repetition_penalty": 1.2}),
    "least length": ({"min_tokens": 2}, {"min_new_tokens": 2}),
    "stop strings": ({"stop": ["ab", "c"]}, {"stop": ["ab", "c"]}),
    "regular expression": ({"structured_outputs": {"regex": "[a-z]+"}}, {"regex": "[a-z]+"}),
    "JSON grammar": ({"structured_outputs": {"json": JSON}}, {"json_schema": json.dumps(JSON)}),
    "not drafted": ({"extra_args": {"eagle3": "off"}}, {"custom_params": {"eagle3": "off"}}),
    "at most 2 draft tokens": (
        {"extra_args": {"eagle3_draft_tokens": 2}},
        {"custom_params": {"eagle3_draft_tokens": 2}},
    ),
}


@dataclass(frozen=True)
class Request:
    kind: str
    prompt: Sequence[int]
    tokens: int  # most of its answer


@dataclass(frozen=True)
class Life:
    """One engine's: its pair, its ranks, and what marks its processes."""

    pair: tuple[Path, Path]
    ranks: int
    mark: str

    def environment(self, variable: str) -> dict[str, str]:
        """Each rank on one core, as far as there are so many."""
        cpus = sorted(os.sched_getaffinity(0))
        return {MARK: self.mark, variable: "|".join(str(cpus[rank % len(cpus)]) for rank in range(self.ranks))}


@dataclass(frozen=True)
class Found:
    """`said` by request, None where it was aborted or failed; `counts` of the piece."""

    said: Sequence[Sequence[int] | None]
    counts: dict[str, Any]


def on_vllm(life: Life, asked: Sequence[Request]) -> Found:
    dice = random.Random(f"aborts {life.mark}")
    params = [{"temperature": 0, **KINDS[request.kind][0], "max_tokens": request.tokens} for request in asked]
    # a few requests start a step: some are aborted waiting, some in flight, some have just ended
    abort = {place: round(place * dice.uniform(0.0, 0.25)) for place in range(0, len(asked), ABORTED_EVERY)}
    engine = {
        "max_num_seqs": 32,
        "max_model_len": 128,
        "max_num_batched_tokens": 512,
        "block_size": 32,
        "num_gpu_blocks_override": 28,  # fewer than 32 requests want
        "enable_prefix_caching": True,
        "tensor_parallel_size": life.ranks,
    }
    settings = {
        "EAGLE3_TREE_TOP_K": "3",
        "EAGLE3_TREE_DEPTH": "3",
        **life.environment("VLLM_CPU_OMP_THREADS_BIND"),
    }
    rounds = [Round([request.prompt for request in asked], params, abort)]
    out = run(Job(life.pair[0], rounds, life.pair[1], 6, engine=engine, settings=settings))
    said, metrics = out["rounds"][0]["tokens"], out["metrics"]
    counts = {
        "aborted": sum(tokens is None for tokens in said),
        "failed": 0,
        "held": out["blocks"],
        "wrong_lines": [line for line in out["log"].splitlines() if WRONG.search(line)][:5],
        "preempted": metrics.get("vllm:num_preemptions", 0),
        "prefix_hits": metrics.get("vllm:prefix_cache_hits", 0),
        "drafts": metrics.get("vllm:spec_decode_num_drafts", 0),
        "accepted": metrics.get("vllm:spec_decode_num_accepted_tokens", 0),
        "serving_s": round(out["rounds"][0]["seconds"], 1),
    }
    return Found(said, counts)


def on_sglang(life: Life, asked: Sequence[Request]) -> Found:
    options = SglangOptions(
        *life.pair,
        trees="0;1,3,3;2,3,5;3,3,7;4,3,9",
        choice="cycle",
        radix_cache=True,
        max_requests=16,
        context=256,
        kv_tokens=640,
        tensor_parallel=life.ranks,
        extra=("--schedule-conservativeness", "0.1"),  # requests start before there is room for their ends
    )
    command = sglang_command(options)
    environment = {**command.environment, **life.environment("SGLANG_CPU_OMP_THREADS_BIND")}
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "server.log"
        with (
            Server(replace(command, environment=environment), log, quiet=True) as server,
            SglangClient(server.url, life.pair[0]) as client,
        ):
            before = used_slots(server.url, client, list(asked[0].prompt))
            ready = len(log.read_text(errors="replace"))

            def one(numbered: tuple[int, Request]) -> list[int] | str:
                number, request = numbered
                sampling = {"temperature": 0.0, **KINDS[request.kind][1], "max_new_tokens": request.tokens}
                body: dict[str, Any] = {"input_ids": list(request.prompt), "sampling_params": sampling}
                if request.kind == "logprobs":
                    body |= {"return_logprob": True, "logprob_start_len": -1}
                if number % ABORTED_EVERY == 0:
                    ask_and_hang_up(server.url, [body], after=number // ABORTED_EVERY % 4)
                    return "aborted"
                try:
                    return list(client.generate(body).token_ids)
                except CheckError:
                    return "failed"

            begun = time.perf_counter()
            with ThreadPoolExecutor(IN_FLIGHT) as pool:
                answers = list(pool.map(one, enumerate(asked)))
            serving_s = time.perf_counter() - begun
            preempted, prefix_hits = totals(client.metrics(), COUNTED)
            spent = client.counters()
            time.sleep(3.0)
            after = used_slots(server.url, client, list(asked[0].prompt))
            lines = [line for line in log.read_text(errors="replace")[ready:].splitlines() if WRONG.search(line)]
    counts = {
        "aborted": answers.count("aborted"),
        "failed": answers.count("failed"),
        "held": [before, after],
        "wrong_lines": lines[:5],
        "preempted": preempted,
        "prefix_hits": prefix_hits,
        "drafts": spent.drafts,
        "accepted": spent.accepted,
        "serving_s": round(serving_s, 1),
    }
    return Found([None if isinstance(answer, str) else answer for answer in answers], counts)


ENGINES: dict[str, Callable[[Life, Sequence[Request]], Found]] = {"vllm": on_vllm, "sglang": on_sglang}
