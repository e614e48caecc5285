"""A streaming client for SGLang's native endpoint, which takes and returns token ids, and its record of speculation."""

import json
import re
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx

from eagle3_serving.errors import CheckError
from eagle3_serving.eval.counters import SpecCounters
from eagle3_serving.serve.client import Answer, ChatClient
from eagle3_serving.targets.chat import chat_ids, load_tokenizer

_NODES = re.compile(r"^eagle3:verified_nodes_total(?:\{[^}]*\})? (\S+)$", re.MULTILINE)


class SglangClient(ChatClient):
    """Speaks to one SGLang server at `url`; `target` is the directory whose chat template prompts go through.

    Speculation is counted from what the server tells of each of this client's requests. Raises CheckError where a
    request fails.
    """

    def __init__(self, url: str, target: Path, timeout_s: float = 600.0) -> None:
        super().__init__(url, timeout_s=timeout_s)
        self._http = httpx.Client(timeout=timeout_s, limits=httpx.Limits(max_connections=256))
        self._tokenizer = load_tokenizer(target)
        self._lock = threading.Lock()
        self._counted = SpecCounters()

    def __exit__(self, *_: object) -> None:
        self._http.close()
        super().__exit__()

    def ask(
        self,
        prompt: str,
        max_tokens: int,
        temperature: float = 0.0,
        on_text: Callable[[str], None] | None = None,
        natural_end: bool = True,
    ) -> Answer:
        """One user message, streamed; `on_text` receives each piece of text as it arrives."""
        sampling = {"max_new_tokens": max_tokens, "temperature": temperature, "ignore_eos": not natural_end}
        body = {"input_ids": chat_ids(self._tokenizer, prompt), "sampling_params": sampling}
        return self.generate(body, on_text)

    def generate(
        self,
        body: dict[str, Any],
        on_text: Callable[[str], None] | None = None,
        on_tokens: Callable[[int], None] | None = None,
    ) -> Answer:
        """A request as `/generate` takes it, streamed; `on_tokens` receives how many tokens there are, as they arrive.
        What either raises hangs up."""
        text, first_token_s = "", 0.0
        token_ids: list[int] = []
        counts: list[int] = []
        about: dict[str, Any] = {}
        started = time.perf_counter()
        try:
            with self._http.stream("POST", f"{self.url}/generate", json={**body, "stream": True}) as response:
                if response.status_code != 200:
                    raise CheckError(f"the server at {self.url} refused: {response.read().decode()[:300]}")
                for line in response.iter_lines():
                    if not line.startswith("data: ") or line == "data: [DONE]":
                        continue
                    piece = json.loads(line.removeprefix("data: "))
                    if "error" in piece:
                        raise CheckError(f"the server at {self.url} failed: {piece['error']}")
                    if not token_ids and piece["output_ids"]:
                        first_token_s = time.perf_counter() - started
                    if on_text is not None and len(piece["text"]) > len(text):
                        on_text(piece["text"][len(text) :])
                    text, token_ids, about = piece["text"], piece["output_ids"], piece["meta_info"]
                    counts.append(len(token_ids))
                    if on_tokens is not None:
                        on_tokens(len(token_ids))
        except httpx.HTTPError as error:
            raise CheckError(f"the server at {self.url} did not answer: {error}") from None
        total_s = time.perf_counter() - started
        counters = self._count(about)
        reason = (about.get("finish_reason") or {}).get("type", "")
        prompt_tokens = int(about.get("prompt_tokens") or 0)
        accepted = _accepted(counts, counters.drafts)
        return Answer(text, tuple(token_ids), first_token_s, total_s, reason, counters, prompt_tokens, accepted)

    def draw(self, text: str, draws: int, max_tokens: int, temperature: float) -> list[tuple[int, ...]]:
        """Token ids of `draws` continuations of a bare text, each of exactly `max_tokens`."""
        ids = self._tokenizer(text)["input_ids"]
        sampling = {"max_new_tokens": max_tokens, "temperature": temperature, "ignore_eos": True, "n": draws}
        try:
            response = self._http.post(f"{self.url}/generate", json={"input_ids": ids, "sampling_params": sampling})
            response.raise_for_status()
            replies = response.json()
        except (httpx.HTTPError, ValueError) as error:
            raise CheckError(f"the server at {self.url} did not answer: {error}") from None
        return [tuple(reply["output_ids"]) for reply in ([replies] if isinstance(replies, dict) else replies)]

    def counters(self) -> SpecCounters:
        """Of the requests that have ended, by this client; draft tokens by the plugin's count over the whole server, where it
        has one, for SGLang itself tells the most that each pass could have held."""
        nodes = self._verified_nodes()
        with self._lock:
            return self._counted if nodes is None else replace(self._counted, draft_tokens=nodes)

    def _verified_nodes(self) -> int | None:
        try:
            page = self._http.get(f"{self.url}/metrics")
        except httpx.HTTPError:
            return None
        found = _NODES.findall(page.text) if page.status_code == 200 else []
        return int(sum(map(float, found))) if found else None

    def _count(self, about: dict[str, Any]) -> SpecCounters:
        histogram: list[int] = about.get("spec_correct_drafts_histogram") or []
        drafts = about.get("spec_verify_ct") or 0
        accepted = sum(place * count for place, count in enumerate(histogram))
        by_position = tuple(sum(histogram[place:]) for place in range(1, len(histogram)))
        proposed = about.get("spec_num_proposed_drafts") or 0
        counters = SpecCounters(drafts, proposed, accepted, by_position)
        with self._lock:
            self._counted += counters
        return counters


def _accepted(counts: Sequence[int], passes: int) -> tuple[int, ...]:
    """Of each verify pass, from the tokens that there were at each piece of the stream: its first is the prefill's. Nothing
    where pieces and passes are not the same."""
    steps = tuple(now - then - 1 for then, now in pairwise(counts))
    return steps if len(steps) == passes and all(step >= 0 for step in steps) else ()
