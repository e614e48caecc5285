"""Answers of the target as token ids, read from JSONL and cut into batches of like length."""

import json
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from eagle3_serving.errors import InputError
from eagle3_serving.files import read_text


@dataclass(frozen=True)
class Answer:
    """One conversation: the prompt as the chat template made it, and what the target answered."""

    id: str
    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]
    temperature: float | None = None  # where the file says it

    @property
    def length(self) -> int:
        return len(self.prompt_ids) + len(self.response_ids)


@dataclass
class DataReport:
    """What became of the lines of answers; `str` is one line for a person."""

    lines: int = 0
    used: int = 0
    tokens: int = 0
    empty: int = 0
    short: int = 0
    long_prompts: int = 0
    cut: int = 0
    first: dict[str, str] = field(default_factory=dict)  # kind -> file:line

    def count(self, kind: str, where: str) -> None:
        setattr(self, kind, getattr(self, kind) + 1)
        self.first.setdefault(kind, where)

    def __str__(self) -> str:
        kinds = {
            "empty": "left out, empty",
            "short": f"left out, shorter than {MIN_TOKENS} tokens",
            "long_prompts": "left out, prompt too long",
            "cut": "cut to the length",
        }
        parts = [f"{getattr(self, k)} {text} (first: {self.first[k]})" for k, text in kinds.items() if getattr(self, k)]
        return "; ".join([f"{self.used} of {self.lines} answers used, {self.tokens} tokens", *parts])


MIN_TOKENS = 3  # a row needs a token that it drafts and the features of two before it


def read_answers(
    files: Iterable[Path],
    max_length: int,
    max_prompt: int | None = None,
    vocab_size: int | None = None,
    report: DataReport | None = None,
) -> list[Answer]:
    """Answers of at least `MIN_TOKENS` tokens, cut at `max_length` in all; those with longer prompts are left out.

    What is left out is counted in `report`. Raises InputError naming file and line, also for a token outside
    `vocab_size`: such answers came from another tokenizer.
    """
    answers, report = [], report or DataReport()
    for path in files:
        # not splitlines: a text may hold other separators than the file's
        for number, line in enumerate(read_text(path).split("\n"), 1):
            if not line.strip():
                continue
            where = f"{path}:{number}"
            report.lines += 1
            answer = _read_line(line, where)
            prompt, response = answer.prompt_ids, answer.response_ids
            ids = prompt + response
            if ids and (min(ids) < 0 or (vocab_size is not None and max(ids) >= vocab_size)):
                wrong = next(i for i in ids if i < 0 or (vocab_size is not None and i >= vocab_size))
                raise InputError(
                    f"{where}: token {wrong} is outside the target's vocabulary of {vocab_size or 'ids from 0'}; "
                    "the answers come from another tokenizer: have this target answer (--prompts)"
                )
            room = max_length - len(prompt)
            if not prompt or not response:
                report.count("empty", f"{path.name}:{number}")
            elif len(prompt) > (max_prompt or max_length) or room < min(MIN_TOKENS, len(response)):
                report.count("long_prompts", f"{path.name}:{number}")
            elif len(response) < MIN_TOKENS:
                report.count("short", f"{path.name}:{number}")
            else:
                if len(response) > room:
                    report.count("cut", f"{path.name}:{number}")
                answers.append(replace(answer, response_ids=response[:room]))
    report.used, report.tokens = len(answers), sum(len(answer.response_ids) for answer in answers)
    if not answers:
        raise InputError(f"no usable answers: {report}; see --max-length and --max-prompt")
    return answers


def _read_line(line: str, where: str) -> Answer:
    """Raises InputError naming what is not there."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: not JSON ({error})") from None
    if not isinstance(row, dict) or "id" not in row:
        raise InputError(f"{where}: not an answer: a JSON object with id, prompt_ids and response_ids")
    for key in ("prompt_ids", "response_ids"):
        if key not in row:
            texts = next(
                (name for name in ("turns", "conversations", "messages", "prompt", "text") if name in row), None
            )
            way = (
                f"; {texts!r} is text: give lines of id and turns as --prompts, and the target answers them"
                if texts
                else ""
            )
            raise InputError(f"{where}: not an answer: it lacks {key}{way}")
        if not isinstance(row[key], list) or not all(type(token) is int for token in row[key]):
            raise InputError(f"{where}: {key} is not a list of token ids (whole numbers)")
    heat = row.get("temperature")
    said = float(heat) if isinstance(heat, int | float) else None
    return Answer(str(row["id"]), tuple(row["prompt_ids"]), tuple(row["response_ids"]), said)


def choose_vocabulary(answers: Iterable[Answer], vocab_size: int, draft_vocab_size: int) -> tuple[Tensor, float]:
    """The most frequent response tokens, sorted: int64 [Vd], and the share of response tokens they cover.

    Ties and unseen tokens go to the lower id, which in a byte-pair vocabulary is the more frequent one.
    """
    counts = Counter(token for answer in answers for token in answer.response_ids)
    chosen = most_frequent(counts, vocab_size, draft_vocab_size)
    coverage = sum(counts[token] for token in chosen.tolist()) / max(1, counts.total())
    return chosen, coverage


def most_frequent(counts: Counter[int], vocab_size: int, size: int) -> Tensor:
    """The `size` tokens that are counted most, sorted: int64 [size]."""
    return torch.tensor(sorted(sorted(range(vocab_size), key=lambda token: (-counts[token], token))[:size]))


def make_batches(answers: Sequence[Answer], tokens_per_batch: int, seed: int) -> list[list[Answer]]:
    """Shuffle, group answers of like length, and shuffle the groups: little padding, still random."""
    rng = random.Random(seed)
    shuffled = list(answers)
    rng.shuffle(shuffled)
    batches: list[list[Answer]] = []
    pool_size = 512
    for start in range(0, len(shuffled), pool_size):
        batch: list[Answer] = []
        for answer in sorted(shuffled[start : start + pool_size], key=lambda a: a.length):
            if batch and (len(batch) + 1) * answer.length > tokens_per_batch:
                batches.append(batch)
                batch = []
            batch.append(answer)
        batches.append(batch)
    rng.shuffle(batches)
    return batches
