"""Answers of the target as token ids, read from JSONL and cut into batches of like length."""

import json
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from eagle3_serving.errors import InputError


@dataclass(frozen=True)
class Answer:
    """One conversation: the prompt as the chat template made it, and what the target answered."""

    id: str
    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]

    @property
    def length(self) -> int:
        return len(self.prompt_ids) + len(self.response_ids)


def read_answers(files: Iterable[Path], max_length: int) -> list[Answer]:
    """Answers of at least 3 tokens, cut at `max_length` in all. Raises InputError naming file and line."""
    answers = []
    for path in files:
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{path} cannot be read: {error}") from None
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
                prompt, response = tuple(map(int, row["prompt_ids"])), tuple(map(int, row["response_ids"]))
                answer = Answer(str(row["id"]), prompt, response[: max(0, max_length - len(prompt))])
            except (ValueError, KeyError, TypeError) as error:
                raise InputError(
                    f"{path}:{number}: not an answer with id, prompt_ids and response_ids ({error})"
                ) from None
            if len(answer.response_ids) >= 3:
                answers.append(answer)
    if not answers:
        raise InputError("no usable answers: every one is shorter than 3 tokens or its prompt fills --max-length")
    return answers


def choose_vocabulary(answers: Iterable[Answer], vocab_size: int, draft_vocab_size: int) -> tuple[Tensor, float]:
    """The most frequent response tokens, sorted: int64 [Vd], and the share of response tokens they cover.

    Ties and unseen tokens go to the lower id, which in a byte-pair vocabulary is the more frequent one.
    """
    counts = Counter(token for answer in answers for token in answer.response_ids)
    ranked = sorted(range(vocab_size), key=lambda token: (-counts[token], token))[:draft_vocab_size]
    coverage = sum(counts[token] for token in ranked) / max(1, counts.total())
    return torch.tensor(sorted(ranked)), coverage


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
