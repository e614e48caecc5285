"""Requests that speculation must not change: one kind a feature of SGLang, as `/generate` takes them."""

import json
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import httpx

from eagle3_serving.serve.client import Answer
from eagle3_serving.serve.sglang_client import SglangClient

Body = dict[str, Any]
_SCHEMA = {
    "type": "object",
    "properties": {"answer": {"type": "string", "maxLength": 24}, "sure": {"type": "boolean"}},
    "required": ["answer", "sure"],
}


def body(prompt_ids: Sequence[int], max_tokens: int, **sampling: Any) -> Body:
    return {
        "input_ids": list(prompt_ids),
        "sampling_params": {"max_new_tokens": max_tokens, "temperature": 0.0, **sampling},
    }


def _json(prompt_ids: Sequence[int], max_tokens: int) -> Body:
    return body(prompt_ids, max_tokens, json_schema=json.dumps(_SCHEMA))


def _stop(prompt_ids: Sequence[int], max_tokens: int) -> Body:
    return body(prompt_ids, max_tokens, stop=[" the", "\n\n", ". "])


def _logprobs(prompt_ids: Sequence[int], max_tokens: int) -> Body:
    return {**body(prompt_ids, max_tokens), "return_logprob": True, "logprob_start_len": -1}


FEATURES: dict[str, Callable[[Sequence[int], int], Body]] = {
    "plain text": body,
    "json grammar": _json,
    "stop strings": _stop,
    "logprobs": _logprobs,
    "repetition penalty": lambda ids, n: body(ids, n, repetition_penalty=1.2),
    "minimum length": lambda ids, n: body(ids, n, min_new_tokens=n // 2),
}
PENALTIES = ("repetition penalty", "minimum length")


def ask_all(client: SglangClient, bodies: Sequence[Body], concurrency: int) -> list[Answer]:
    """Answers in order, `concurrency` in flight: requests join as others leave."""
    with ThreadPoolExecutor(concurrency) as pool:
        return list(pool.map(client.generate, bodies))


def ask_and_hang_up(url: str, bodies: Sequence[Body], after: int) -> None:
    """Starts each request and drops the connection after `after` pieces: an abort, as SGLang sees it."""

    def one(request: Body) -> None:
        with (
            suppress(httpx.HTTPError),
            httpx.stream("POST", f"{url}/generate", json={**request, "stream": True}, timeout=60.0) as response,
        ):
            for count, _ in enumerate(response.iter_lines()):
                if count >= after:
                    break

    threads = [threading.Thread(target=one, args=(request,)) for request in bodies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
