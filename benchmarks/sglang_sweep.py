"""Trees that follow the batch, on real SGLang: against each fixed tree, SGLang's own tree and adaptive chain, and plain decoding.

All servers of a run are up at once and take turns at each batch size, so that they meet the same minutes; after some
rounds only those go on that the bounds compare. A batch size is a number of requests in flight: one that ends makes room for the
next, and the clock stops when none is left to send. Answers differ in length, the same for every server, as users' do:
of equal ones plain decoding would take in and end a whole batch at once. Prefills count.

    python -m benchmarks.sglang_sweep --drafter checkpoints/smollm2-135m-instruct --prompts prompts.jsonl \\
        --servers plain,auto,1:4:3,3:4:6 --out benchmarks/results/sglang-sweep
"""

import argparse
import json
import random
import statistics
import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.common import add_pair, write_json
from benchmarks.redraw.by_load import sglang_png
from benchmarks.sglang_cases import Body, body
from eagle3_serving.eval.counters import SpecCounters
from eagle3_serving.eval.prompts import read_prompts
from eagle3_serving.files import write_whole
from eagle3_serving.serve.client import Answer
from eagle3_serving.serve.server import Server, log_directory
from eagle3_serving.serve.sglang import SglangOptions, sglang_command
from eagle3_serving.serve.sglang_client import SglangClient
from eagle3_serving.serve.shape import Shape
from eagle3_serving.targets.chat import chat_ids, load_tokenizer
from eagle3_serving.targets.smollm2 import fetch_target

TREES = "0;1,4,3;3,4,6;5,4,12"
CHOOSING = ("auto", "own-adaptive")
MAX_PROMPT = 200
LEAST_REQUESTS = 4  # a round of one or two short answers says little


def server_options(name: str, common: SglangOptions, profile: Path) -> SglangOptions:
    """`plain`, `plain-serial` (steps that do not overlap, as those of speculation on a CPU), `auto`, `own:S:K:N` or
    `S:K:N` for a fixed tree of SGLang's or ours, `own-adaptive`."""
    if name.startswith("plain"):
        return replace(common, drafter=None, extra=("--disable-overlap-schedule",) if name == "plain-serial" else ())
    if name == "auto":
        return replace(common, trees=TREES, profile=profile)
    if name == "own-adaptive":
        # SGLang's own adapts a chain, and only without CUDA graphs of a CPU
        return replace(common, plugin=False, extra=("--speculative-adaptive", "--disable-cuda-graph"))
    *own, steps, top_k, tokens = name.split(":")
    return replace(common, shape=Shape(int(steps), int(top_k), int(tokens)), plugin=not own)


def answer_lengths(mean: int, requests: int) -> list[int]:
    """From half of `mean` to half as much again, drawn once for all servers."""
    draw = random.Random(1)
    return [draw.randint(mean - mean // 2, mean + mean // 2) for _ in range(requests)]


class Load:
    """`batch` requests in flight until there is no other to send: what came by then, and the tokens a pass of all."""

    def __init__(self, client: SglangClient, bodies: Sequence[Body], batch: int) -> None:
        self._client, self._waiting = client, deque(bodies)
        self._arrived = [0] * batch  # tokens by place in the batch
        self._lock = threading.Lock()
        self.tokens, self.seconds = 0, 0.0  # until the clock stops
        self._begun = time.perf_counter()
        with ThreadPoolExecutor(batch) as pool:
            answers = [answer for said in pool.map(self._keep_busy, range(batch)) for answer in said]
        self.length = sum((answer.counters for answer in answers), SpecCounters()).accepted_length

    def _keep_busy(self, place: int) -> list[Answer]:
        answers = []
        while (request := self._next()) is not None:
            before = self._arrived[place]

            def count(tokens: int, before: int = before) -> None:
                if not self.seconds:
                    self._arrived[place] = before + tokens

            answers.append(self._client.generate(request, on_tokens=count))
        return answers

    def _next(self) -> Body | None:
        with self._lock:
            if self._waiting:
                return self._waiting.popleft()
            if not self.seconds:
                self.tokens, self.seconds = sum(self._arrived), time.perf_counter() - self._begun
            return None


def measure(clients: dict[str, SglangClient], work: dict[int, list[Body]], rounds: range) -> list[dict[str, Any]]:
    """Tokens a second and tokens a pass of every server in every round at every batch size."""
    rows = []
    order = list(clients)
    for turn in rounds:
        for batch, bodies in work.items():
            random.Random(f"{turn} {batch}").shuffle(order)
            for name in order:
                load = Load(clients[name], bodies, batch)
                speed, length = load.tokens / load.seconds, load.length
                rows.append(
                    {"server": name, "batch": batch, "round": turn, "tokens_per_second": speed, "length": length}
                )
                print(f"round {turn} batch {batch:2} {name:14} {speed:6.1f} tokens/s {length:.2f}", flush=True)
    return rows


def best_fixed(figures: dict[str, dict[int, dict[str, float]]]) -> dict[int, str]:
    """Batch -> the fastest fixed tree of ours, where any was measured."""
    fixed = [name for name in figures if name[0].isdigit()]
    if not fixed:
        return {}
    return {batch: max(fixed, key=lambda name: figures[name][batch]["ratio"]) for batch in figures["plain"]}


def ratios(rows: Sequence[dict[str, Any]], name: str, base: str, batch: int) -> list[float]:
    """Speeds of one server over another's of the same round, for the rounds that both were in."""
    speed = {(row["server"], row["round"]): row["tokens_per_second"] for row in rows if row["batch"] == batch}
    both = [turn for who, turn in speed if who == name and (base, turn) in speed]
    return [speed[name, turn] / speed[base, turn] for turn in both]


def bounds(rows: Sequence[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    """Batch -> auto against plain decoding and against the best fixed tree, each a median over ratios of one round."""
    last = max(row["round"] for row in rows)
    to_the_end = {row["server"] for row in rows if row["round"] == last}
    figures = {name: by_batch for name, by_batch in table(rows).items() if name in to_the_end}
    made: dict[int, dict[str, Any]] = {}
    for batch, best in best_fixed(figures).items() if "auto" in figures else ():
        made[batch] = {"best_fixed": best}
        for key, name in (("to_plain", "plain"), ("to_best_fixed", best)):
            found = ratios(rows, "auto", name, batch)
            made[batch] |= {key: statistics.median(found), f"{key}_spread": [min(found), max(found)]}
    return made


def table(rows: Sequence[dict[str, Any]]) -> dict[str, dict[int, dict[str, float]]]:
    """Server -> batch -> medians, and the ratio to plain decoding of the same round."""
    made: dict[str, dict[int, dict[str, float]]] = {}
    for name in dict.fromkeys(row["server"] for row in rows):
        for batch in dict.fromkeys(row["batch"] for row in rows):
            mine = [row for row in rows if (row["server"], row["batch"]) == (name, batch)]
            found = ratios(rows, name, "plain", batch)
            made.setdefault(name, {})[batch] = {
                "tokens_per_second": statistics.median(row["tokens_per_second"] for row in mine),
                "ratio": statistics.median(found),
                "least": min(found),
                "most": max(found),
                "length": statistics.median(row["length"] for row in mine),
            }
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_pair(parser)
    parser.add_argument("--servers", default="plain,auto,1:4:3,3:4:6,5:4:12,own:5:4:8,own-adaptive")
    parser.add_argument("--batches", default="1,2,4,8,16")
    parser.add_argument(
        "--tokens", type=int, default=32, help="mean length of an answer; half to one and a half of it (default 32)"
    )
    parser.add_argument(
        "--waves", type=int, default=3, help="requests a round, in multiples of those in flight (default 3)"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--more",
        type=int,
        default=6,
        help="further rounds of plain, auto and the trees of ours that were best at some load (default 6)",
    )
    parser.add_argument(
        "--warm-up", type=int, default=2, help="rounds before those that count, of fixed trees only one (default 2)"
    )
    parser.add_argument("--port", type=int, default=18320, help="the first server's port")
    parser.add_argument("--profile", type=Path, help="measured step costs for auto (default: measured in the warm-up)")
    parser.add_argument("--out", type=Path, required=True, help="written with .json and .png")
    args = parser.parse_args()
    if "plain" not in args.servers.split(",") or min(args.rounds, args.waves) < 1:
        parser.error("every ratio is to plain decoding: --servers must name plain, --rounds and --waves be at least 1")
    target = args.target or fetch_target()
    tokenizer = load_tokenizer(target)
    prompts = read_prompts(args.prompts, None)
    random.Random(0).shuffle(prompts)
    asked = [ids for prompt in prompts if len(ids := chat_ids(tokenizer, prompt.turns[0])) < MAX_PROMPT]
    batches = [int(batch) for batch in args.batches.split(",")]
    if len(asked) < args.waves * max(batches):
        parser.error(
            f"{args.waves} waves of {max(batches)} requests need as many prompts under {MAX_PROMPT} tokens; --prompts holds "
            f"{len(asked)}: give more, or lower --waves or --batches"
        )
    lengths = answer_lengths(args.tokens, len(asked))
    bodies = [body(ids, most, ignore_eos=True) for ids, most in zip(asked, lengths, strict=True)]
    work = {batch: bodies[: max(args.waves * batch, LEAST_REQUESTS)] for batch in batches}
    common = SglangOptions(target, args.drafter, max_requests=max(batches), kv_tokens=6144)
    with ExitStack() as stack:
        logs = stack.enter_context(log_directory("sweep"))
        profile = args.profile or logs / "profile.json"
        servers = {
            name: Server(
                sglang_command(server_options(name, common, profile)), logs / f"{place}.log", args.port + place
            )
            for place, name in enumerate(args.servers.split(","))
        }
        for server in servers.values():
            stack.callback(server.stop)
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(Server.__enter__, servers.values()))
        clients = {name: stack.enter_context(SglangClient(server.url, target)) for name, server in servers.items()}
        print("warming up, not counted:", flush=True)
        measure(clients, work, range(min(args.warm_up, 1)))
        # who chooses has more to learn than a warm cache
        measure({name: clients[name] for name in clients if name in CHOOSING}, work, range(1, args.warm_up))
        print("counted:", flush=True)
        rows = measure(clients, work, range(args.rounds))
        close = {"plain", "auto", *best_fixed(table(rows)).values()}
        further = range(args.rounds, args.rounds + args.more)
        rows += measure({name: clients[name] for name in clients if name in close}, work, further)
    figures, auto = table(rows), bounds(rows)
    made = {"bounds": auto, "figures": figures, "rows": rows, "tokens": args.tokens, "waves": args.waves}
    write_json(args.out.with_suffix(".json"), made)
    write_whole(args.out.with_suffix(".png"), sglang_png(figures))
    print(json.dumps({"bounds": auto, "figures": figures}, indent=1))


if __name__ == "__main__":
    main()
