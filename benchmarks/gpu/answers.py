"""The target's own answers, made on this device in large batches: what a drafter is trained on."""

import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu.graphs import GraphedTarget
from benchmarks.gpu.sink import read_lines
from eagle3_serving.engine import DecodeOptions, EmbeddedEngine, Sampling

TEMPERATURE = 0.8
CHUNK = 4096  # prompts of one temperature at a time


def generate(
    engine: EmbeddedEngine,
    prompts: Sequence[tuple[str, list[int]]],
    out: Path,
    *,
    seconds: float,
    max_tokens: int,
    batch: int,
    passes: int,
    seed: int,
) -> dict[str, Any]:
    """Append answers to `out` until every prompt was answered `passes` times or the time is over.

    The first pass answers every second prompt greedily, all else is sampled. Prompts that `out` holds are passed over.
    """
    engine.target = target = GraphedTarget(engine.target, bucket=128)
    engine.prefill_rows, engine.admit_least = 64 * max(256, batch // 2), max(1, batch // 8)
    done = {line["id"] for line in read_lines(out)}
    begun, tokens, answers = time.perf_counter(), 0, 0
    with out.open("a", encoding="utf-8") as file:
        for number, (temperature, chunk) in enumerate(_chunks(prompts, passes)):
            todo = [(name, ids) for name, ids in chunk if name not in done]
            sampling = Sampling(temperature, seed=seed + number)
            options = DecodeOptions(max_tokens, "plain", sampling=sampling)
            said: list[list[int]] = [[] for _ in todo]
            for event in engine.serve([ids for _, ids in todo], options, batch) if todo else ():
                said[event.prompt] += event.step.token_ids
                if event.step.last:
                    name, ids = todo[event.prompt]
                    line = {"id": name, "temperature": temperature, "prompt_ids": ids}
                    file.write(json.dumps({**line, "response_ids": said[event.prompt]}) + "\n")
                    tokens, answers = tokens + len(said[event.prompt]), answers + 1
                if time.perf_counter() - begun > seconds:
                    break
            target.drop()
            if time.perf_counter() - begun > seconds:
                break
    spent = time.perf_counter() - begun
    figures = {"answers": answers, "tokens": tokens, "seconds": round(spent, 1), "batch": batch}
    return {**figures, "tokens_per_second": round(tokens / spent, 1)}


def _chunks(
    prompts: Sequence[tuple[str, list[int]]], passes: int
) -> Iterator[tuple[float, Sequence[tuple[str, list[int]]]]]:
    for number in range(passes):
        for start in range(0, len(prompts), 2 * CHUNK):
            part = [(f"{name}#{number}" if number else name, ids) for name, ids in prompts[start : start + 2 * CHUNK]]
            if number == 0:
                yield 0.0, part[::2]
                yield TEMPERATURE, part[1::2]
            else:
                yield TEMPERATURE, part
