"""Which answers are trained on and which are kept out, by family; general ones are mixed in, so that nothing is forgotten."""

import random
from collections.abc import Sequence
from typing import NamedTuple

from eagle3_serving.errors import InputError
from eagle3_serving.train.data import Answer

Families = dict[str, list[Answer]]


class Mixture(NamedTuple):
    """`held_out` by family, the own one first; `general` answers are among those of `train`."""

    train: list[Answer]
    held_out: Families
    general: int = 0

    @property
    def all_held_out(self) -> list[Answer]:
        return [answer for family in self.held_out.values() for answer in family]


def split(answers: Sequence[Answer], held_out: int, seed: int, name: str = "held-out") -> Mixture:
    """Keep `held_out` answers out by chance, not from the end: files are ordered by source. Raises InputError where none is
    left to train on."""
    shuffled = list(answers)
    random.Random(seed + 1).shuffle(shuffled)
    out, rest = shuffled[:held_out], shuffled[held_out:]
    if not rest:
        raise InputError(f"only {len(out)} usable answers: fewer than --held-out {held_out} leave none to train on")
    return Mixture(rest, {name: out} if out else {})


def mix(own: Mixture, general: Families, share: float, held_out: int, seed: int) -> Mixture:
    """Join `general` answers until `share` of the tokens are theirs, or all of them are in.

    `held_out` of them are kept out, the families counted alike, a fifth of a family at most.
    """
    kept, pool = dict(own.held_out), list[Answer]()
    for name, answers in general.items():
        shuffled = list(answers)
        random.Random(f"{seed}/{name}").shuffle(shuffled)
        out = min(len(shuffled) // 5, held_out // len(general))
        if out:
            kept[name if name not in kept else f"general {name}"] = shuffled[:out]
        pool += shuffled[out:]
    random.Random(seed + 2).shuffle(pool)
    wanted = _tokens(own.train) * share / (1 - share)
    joined, tokens = list[Answer](), 0
    for answer in pool:
        if tokens >= wanted:
            break
        joined.append(answer)
        tokens += len(answer.response_ids)
    return Mixture([*own.train, *joined], kept, len(joined))


def _tokens(answers: Sequence[Answer]) -> int:
    return sum(len(answer.response_ids) for answer in answers)
