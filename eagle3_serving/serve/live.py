"""What a running server says of its drafting, read from its own metrics, as one line that is rewritten."""

import re
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

import httpx

from eagle3_serving.errors import CheckError
from eagle3_serving.serve.server import Server

_LINE = re.compile(r"^([\w:]+)(?:\{[^}]*\})? ([-+.\deE]+)$", re.MULTILINE)
# (requests' verify passes, accepted draft tokens, generated tokens, requests running), as either engine names them
_NAMES = {
    "vllm": (
        "vllm:spec_decode_num_drafts_total",
        "vllm:spec_decode_num_accepted_tokens_total",
        "vllm:generation_tokens_total",
        "vllm:num_requests_running",
    ),
    "sglang": (
        "eagle3:verified_requests_total",
        "eagle3:accepted_tokens_total",
        "sglang:generation_tokens_total",
        "sglang:num_running_reqs",
    ),
}
_EVERY_S, _EVERY_ELSEWHERE_S = 1.0, 60.0


@dataclass(frozen=True)
class Traffic:
    """Sums since the server started, and the requests it runs now."""

    passes: float = 0.0
    accepted: float = 0.0
    tokens: float = 0.0
    running: float = 0.0

    def since(self, before: "Traffic", seconds: float) -> str:
        """The line: accepted length and rate between two looks."""
        passes = self.passes - before.passes
        rate = (self.tokens - before.tokens) / seconds
        length = f"{1 + (self.accepted - before.accepted) / passes:.2f}" if passes > 0 else "-"
        return f"accepted length {length}   {rate:.1f} tokens/s   {self.running:.0f} running   {self.tokens:.0f} tokens so far"


def parse_traffic(metrics: str, engine: str) -> Traffic:
    """From the text of `/metrics`."""
    return Traffic(*totals(metrics, _NAMES[engine]))


def totals(metrics: str, names: Sequence[str]) -> list[float]:
    """Of each name in the text of `/metrics`: values of all labels are added up, what is missing is 0."""
    sums = dict.fromkeys(names, 0.0)
    for name, value in _LINE.findall(metrics):
        if name in sums:
            sums[name] += float(value)
    return list(sums.values())


def watch(server: Server, engine: str) -> int:
    """Until the server ends: its exit code. On a terminal the line is rewritten every second, elsewhere one is printed
    a minute with traffic. Raises CheckError, with its last words, where it ends badly."""
    terminal = sys.stderr.isatty()
    every = _EVERY_S if terminal else _EVERY_ELSEWHERE_S
    before, looked = Traffic(), time.monotonic()
    while (code := server.ended) is None:
        time.sleep(0.25)
        if (passed := time.monotonic() - looked) < every:
            continue
        try:
            now = parse_traffic(httpx.get(f"{server.url}/metrics", timeout=5.0).text, engine)
        except httpx.HTTPError:
            continue  # busy, or about to end: the next look tells
        looked += passed
        if terminal:
            # cut to the window: a line that wraps cannot be rewritten
            room = shutil.get_terminal_size().columns - 1
            print(f"\r\033[K{now.since(before, passed)[:room]}", end="", file=sys.stderr, flush=True)
        elif now.tokens > before.tokens:
            print(now.since(before, passed), file=sys.stderr, flush=True)
        before = now
    if terminal:
        print(file=sys.stderr)
    if code != 0:
        raise CheckError(f"{server.command.name} ended (exit code {code}): {server.last_words}")
    return code
