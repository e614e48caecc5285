"""Throughput of a load that is mostly shared prefixes: our drafts beside the engine's own chain, and both plainly.

    python -m benchmarks.prefix_load --engine sglang --drafter checkpoints/smollm2-135m-instruct --out prefix-load-sglang.json

Several questions about each of some documents, so that all but the first find the document in the prefix cache (`shared`); and as many about
a document each (`apart`). All servers are up at once and take turns, every round with documents that no server has read. What speculation
costs the prefix cache shows in `shared`: the ratio of ours to the engine's own there, beside that of `apart`. fp32, T = 0, every answer held
against plain decoding's. vLLM runs its Model Runner V1 here, whose chains need no interpreter. Ten minutes.
"""

import argparse
import statistics
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import httpx

from benchmarks.common import write_json
from eagle3_serving.serve.server import Server, ServerCommand, log_directory
from eagle3_serving.serve.sglang import SglangOptions, sglang_command
from eagle3_serving.serve.shape import Shape
from eagle3_serving.serve.vllm import SERVED_NAME, VllmOptions, vllm_command
from eagle3_serving.targets.chat import chat_ids, load_tokenizer
from eagle3_serving.targets.smollm2 import fetch_target

ROOT = Path(__file__).resolve().parent.parent
TEXTS = ("docs/operations.md", "docs/training.md", "docs/how-it-works.md", "docs/checkpoints.md", "CHANGELOG.md")
QUESTIONS = (
    "What is this text about?",
    "Who would read this?",
    "Name one thing that it warns of.",
    "What is its first sentence?",
    "Give it a title.",
    "What would you ask its author?",
)
DOCUMENTS, IN_FLIGHT, CONTEXT = 2, 4, 2048
KINDS = ("shared", "apart")
CHAIN = Shape(3, 1, 4)


class Said(NamedTuple):
    """Of one server in one load: its answers' texts in order, seconds, and the prompts' tokens, of which so many were found again."""

    answers: list[str]
    seconds: float
    prompt_tokens: int
    found: int


def sides(engine: str, target: Path, drafter: Path) -> dict[str, ServerCommand]:
    """Plain decoding first, then the engine's own chain, then ours."""
    if engine == "vllm":
        told = ("--enable-prompt-tokens-details",)
        plain = VllmOptions(target, None, max_num_seqs=IN_FLIGHT, max_model_len=CONTEXT, prefix_cache=True, extra=told)
        chains = {"vLLM's own chain of 3": False, "our chain of 3": True}
        drafting = {
            name: vllm_command(replace(plain, drafter=drafter, k=3, plugin=plugin)) for name, plugin in chains.items()
        }
        return {"plain": vllm_command(plain), **drafting}
    common = SglangOptions(
        target, None, max_requests=IN_FLIGHT, context=CONTEXT, radix_cache=True, extra=("--enable-cache-report",)
    )
    shapes = {
        "SGLang's own chain of 3": (CHAIN, False),
        "our chain of 3": (CHAIN, True),
        "our tree 3,4,6": (Shape(3, 4, 6), True),
    }
    drafting = {
        name: sglang_command(replace(common, drafter=drafter, shape=shape, plugin=plugin))
        for name, (shape, plugin) in shapes.items()
    }
    return {"plain": sglang_command(common), **drafting}


def documents(target: Path, size: int) -> Iterator[str]:
    """Stretches of `size` tokens of the project's own pages, each once. Ends where there are no more."""
    tokenizer = load_tokenizer(target)
    for name in TEXTS:
        ids = tokenizer((ROOT / name).read_text(encoding="utf-8"), add_special_tokens=False)["input_ids"]
        for start in range(0, len(ids) - size, size):
            yield tokenizer.decode(ids[start : start + size])


def asked(target: Path, kind: str, texts: Iterator[str]) -> list[list[int]]:
    """A load's prompts, the questions about one document one after the other."""
    tokenizer = load_tokenizer(target)
    shared = [next(texts) for _ in range(DOCUMENTS)] if kind == "shared" else None
    pairs = [(d, question) for d in range(DOCUMENTS) for question in QUESTIONS]
    return [chat_ids(tokenizer, f"{shared[d] if shared else next(texts)}\n\n{question}") for d, question in pairs]


def play(url: str, prompts: Sequence[Sequence[int]], max_tokens: int) -> Said:
    """All of them, `IN_FLIGHT` at a time."""
    with httpx.Client(timeout=600.0) as client, ThreadPoolExecutor(IN_FLIGHT) as pool:

        def one(prompt: Sequence[int]) -> dict[str, Any]:
            told = {"model": SERVED_NAME, "prompt": list(prompt), "max_tokens": max_tokens}
            reply = client.post(f"{url}/v1/completions", json={**told, "temperature": 0, "ignore_eos": True})
            reply.raise_for_status()
            said: dict[str, Any] = reply.json()
            return said

        begun = time.perf_counter()
        replies = list(pool.map(one, prompts))
        seconds = time.perf_counter() - begun
    usages = [reply["usage"] for reply in replies]
    found = [(usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0 for usage in usages]
    texts = [reply["choices"][0]["text"] for reply in replies]
    return Said(texts, seconds, sum(usage["prompt_tokens"] for usage in usages), sum(found))


def summary(names: Sequence[str], rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Side -> kind of load -> median tokens a second, hit rate, and the ratio to the engine's own chain (the second of `names`) of the
    same round with its spread."""
    own, made = names[1], dict[str, Any]()
    for name in names:
        for kind in KINDS:
            mine = [row for row in rows if (row["side"], row["kind"]) == (name, kind)]
            base = {row["round"]: row["tokens_per_second"] for row in rows if (row["side"], row["kind"]) == (own, kind)}
            ratios = sorted(row["tokens_per_second"] / base[row["round"]] for row in mine)
            made.setdefault(name, {})[kind] = {
                "tokens_per_second": round(statistics.median(row["tokens_per_second"] for row in mine), 1),
                "hit_rate": round(sum(row["found"] for row in mine) / sum(row["prompt_tokens"] for row in mine), 4),
                "to_own": round(statistics.median(ratios), 3),
                "to_own_spread": [round(ratios[0], 3), round(ratios[-1], 3)],
                "differing": sum(row["differing"] for row in mine),
            }
    return made


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", choices=("vllm", "sglang"), required=True)
    parser.add_argument("--target", type=Path, help="directory of the target (default: SmolLM2-135M-Instruct)")
    parser.add_argument("--drafter", type=Path, required=True)
    parser.add_argument("--document-tokens", type=int, default=320, help="of each document (default 320)")
    parser.add_argument("--max-tokens", type=int, default=24, help="of each answer (default 24)")
    parser.add_argument("--rounds", type=int, default=3, help="that count, after one that does not (default 3)")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    target = args.target or fetch_target()
    needed = (1 + args.rounds) * DOCUMENTS * (1 + len(QUESTIONS))
    texts = list(documents(target, args.document_tokens))
    if len(texts) < needed:
        parser.error(
            f"{args.rounds} rounds need {needed} documents, and there are {len(texts)} of {args.document_tokens} tokens: "
            "lower --rounds or --document-tokens"
        )
    head = {"engine": args.engine, "requests": DOCUMENTS * len(QUESTIONS)}
    unread, rows = iter(texts), list[dict[str, Any]]()
    with ExitStack() as stack:
        logs = stack.enter_context(log_directory("prefix-load"))
        servers = {
            name: stack.enter_context(Server(command, logs / f"{place}.log"))
            for place, (name, command) in enumerate(sides(args.engine, target, args.drafter).items())
        }
        for turn in range(1 + args.rounds):
            for kind in KINDS:
                prompts, expected = asked(target, kind, unread), list[str]()
                order = list(servers) if turn % 2 else [next(iter(servers)), *list(servers)[:0:-1]]
                for name in order:  # plain decoding first, whose answers the others are held against
                    said = play(servers[name].url, prompts, args.max_tokens)
                    expected = expected or said.answers
                    row = {
                        "side": name,
                        "kind": kind,
                        "round": turn,
                        "tokens_per_second": len(prompts) * args.max_tokens / said.seconds,
                        "prompt_tokens": said.prompt_tokens,
                        "found": said.found,
                        "differing": sum(a != b for a, b in zip(said.answers, expected, strict=True)),
                    }
                    print(*row.values(), flush=True)
                    if turn:
                        rows.append(row)
                        write_json(args.out, {**head, "rows": rows})
    found = summary(list(servers), rows)
    write_json(args.out, {**head, "sides": found, "rows": rows})
    for name, figures in found.items():
        print(name, figures)
    return 0 if not any(row["differing"] for row in rows) else 1


if __name__ == "__main__":
    raise SystemExit(main())
