"""A streaming client for a vLLM server, and its counters of speculative decoding."""

import re
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Self

import httpx
import openai

from eagle3_serving.errors import CheckError
from eagle3_serving.eval.counters import SpecCounters
from eagle3_serving.serve.vllm import SERVED_NAME

_COUNTER = re.compile(r"^vllm:spec_decode_num_(\w+?)_total(?:\{([^}]*)\})? (\S+)$", re.MULTILINE)
_TREE_PASSES = re.compile(r"^vllm:eagle3_verify_passes_total(?:\{[^}]*\})? (\S+)$", re.MULTILINE)
_POSITION = re.compile(r'position="(\d+)"')


@dataclass(frozen=True)
class Answer:
    """One streamed answer. Times in seconds from sending the request; `first_token_s` covers the prefill. `counters`: its
    own speculation, where the engine tells it of each request; `accepted`: draft tokens accepted by each of its verify
    passes in order, where it tells that, behind a prompt of `prompt_tokens`."""

    text: str
    token_ids: tuple[int, ...]
    first_token_s: float
    total_s: float
    finish_reason: str
    counters: SpecCounters = field(default_factory=SpecCounters)
    prompt_tokens: int = 0
    accepted: tuple[int, ...] = ()


def parse_counters(metrics: str) -> SpecCounters:
    """From the text of `/metrics`; all zero where the server does not speculate."""
    totals: dict[str, int] = {}
    positions: dict[int, int] = {}
    for name, labels, value in _COUNTER.findall(metrics):
        place = _POSITION.search(labels)
        if name == "accepted_tokens_per_pos" and place is not None:
            index = int(place.group(1))
            positions[index] = positions.get(index, 0) + int(float(value))
        else:
            totals[name] = totals.get(name, 0) + int(float(value))
    return SpecCounters(
        totals.get("drafts", 0),
        totals.get("draft_tokens", 0),
        totals.get("accepted_tokens", 0),
        tuple(positions[index] for index in sorted(positions)),
    )


def _accepted(metrics: Any) -> tuple[int, ...]:
    """By step, of a server under `--per-request-spec-decode-metrics detailed`."""
    told = metrics.get("speculative_decoding") if isinstance(metrics, dict) else None
    return tuple(told.get("per_step_accepted") or ()) if isinstance(told, dict) else ()


class ChatClient:
    """Speaks to one server at `url` (no trailing `/v1`). `chat` False: of a base model, which has no chat template and
    continues bare texts. Raises CheckError where a request fails."""

    def __init__(self, url: str, model: str = SERVED_NAME, timeout_s: float = 600.0, chat: bool = True) -> None:
        self.url = url
        self.model = model
        self.chat = chat
        self._openai = openai.OpenAI(base_url=f"{url}/v1", api_key="none", timeout=timeout_s, max_retries=0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._openai.close()

    def ask(
        self,
        prompt: str,
        max_tokens: int,
        temperature: float = 0.0,
        on_text: Callable[[str], None] | None = None,
        natural_end: bool = True,
    ) -> Answer:
        """One user message, streamed; `on_text` receives each piece of text as it arrives. Without `natural_end` end
        tokens are passed over and the answer has exactly `max_tokens`."""
        text: list[str] = []
        token_ids: list[int] = []
        first_token_s = 0.0
        finish_reason = ""
        prompt_tokens = 0
        accepted: tuple[int, ...] = ()
        started = time.perf_counter()
        try:
            for chunk in self._stream(prompt, max_tokens, temperature, natural_end):
                if not chunk.choices:  # the last one, of the whole answer
                    prompt_tokens = chunk.usage.prompt_tokens if chunk.usage else 0
                    accepted = _accepted(getattr(chunk, "metrics", None))
                    continue
                choice = chunk.choices[0]
                new_ids: list[int] = getattr(choice, "token_ids", None) or []
                if new_ids and not token_ids:
                    first_token_s = time.perf_counter() - started
                token_ids += new_ids
                if piece := choice.delta.content if self.chat else choice.text:
                    text.append(piece)
                    if on_text is not None:
                        on_text(piece)
                finish_reason = choice.finish_reason or finish_reason
        except (openai.OpenAIError, httpx.HTTPError) as error:
            raise CheckError(f"the server at {self.url} did not answer: {' '.join(str(error).split())}") from None
        if not token_ids:
            raise CheckError(f"the server at {self.url} returned no token ids: it must know return_token_ids")
        total_s = time.perf_counter() - started
        return Answer(
            "".join(text),
            tuple(token_ids),
            first_token_s,
            total_s,
            finish_reason,
            prompt_tokens=prompt_tokens,
            accepted=accepted,
        )

    def _stream(self, prompt: str, max_tokens: int, temperature: float, natural_end: bool) -> Iterable[Any]:
        settings: dict[str, Any] = {
            "model": self.model,
            "max_tokens": max_tokens,
            "temperature": temperature,
            "stream": True,
            "stream_options": {"include_usage": True},
            "extra_body": {"return_token_ids": True, "ignore_eos": not natural_end},
        }
        made: Any
        if self.chat:
            made = self._openai.chat.completions.create(messages=[{"role": "user", "content": prompt}], **settings)
        else:
            made = self._openai.completions.create(prompt=prompt, **settings)
        return made  # type: ignore[no-any-return]

    def ask_all(
        self,
        prompts: Sequence[str],
        max_tokens: int,
        temperature: float = 0.0,
        concurrency: int = 1,
        natural_end: bool = True,
    ) -> tuple[list[Answer], float]:
        """All answers in the order of the prompts, and the wall seconds, with `concurrency` requests in flight."""

        def ask(prompt: str) -> Answer:
            return self.ask(prompt, max_tokens, temperature, natural_end=natural_end)

        started = time.perf_counter()
        with ThreadPoolExecutor(max_workers=concurrency) as pool:
            answers = list(pool.map(ask, prompts))
        return answers, time.perf_counter() - started

    def draw(self, text: str, draws: int, max_tokens: int, temperature: float) -> list[tuple[int, ...]]:
        """Token ids of `draws` continuations of a bare text, each of exactly `max_tokens`."""
        try:
            reply = self._openai.completions.create(
                model=self.model,
                prompt=text,
                n=draws,
                max_tokens=max_tokens,
                temperature=temperature,
                extra_body={"return_token_ids": True, "ignore_eos": True},
            )
        except (openai.OpenAIError, httpx.HTTPError) as error:
            raise CheckError(f"the server at {self.url} did not answer: {' '.join(str(error).split())}") from None
        drawn = [tuple(getattr(choice, "token_ids", None) or ()) for choice in reply.choices]
        if len(drawn) != draws or not all(drawn):
            raise CheckError(
                f"the server at {self.url} returned no {draws} lists of token ids: it must know n and return_token_ids"
            )
        return drawn

    def counters(self) -> SpecCounters:
        return parse_counters(self.metrics())

    def tree_passes(self) -> int:
        """Passes that verified a tree of the plugin's; 0 on a server without the plugin."""
        return sum(int(float(value)) for value in _TREE_PASSES.findall(self.metrics()))

    def metrics(self) -> str:
        """The text of `/metrics`."""
        try:
            response = httpx.get(f"{self.url}/metrics", timeout=30.0)
            response.raise_for_status()
        except httpx.HTTPError as error:
            raise CheckError(f"the server at {self.url} shows no metrics: {error}") from None
        return response.text
