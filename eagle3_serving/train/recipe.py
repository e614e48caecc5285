"""What a run must go on with as it began, or it would become another run in silence."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from eagle3_serving.drafter.config import DrafterConfig
from eagle3_serving.errors import InputError
from eagle3_serving.train import fingerprint
from eagle3_serving.train.data import Answer
from eagle3_serving.train.options import TrainOptions

Recipe = dict[str, Any]

_MAY_CHANGE = ("tokens", "save_every", "log_every", "patience", "measure_every")  # how long and how often, not what
_SHAPE = (
    "draft_vocab_size",
    "aux_layers",
    "norm_output",
    "pre_fc_norm",
    "sliding_window",
    "num_layers",
    "mask_token_id",
    "causal_head",
)
_CONTENT = {  # remembered by content: the words for another
    "target": "for another target (weights or config.json differ)",
    "answers": "on other answers (their tokens, or --max-length, --max-prompt, --held-out or --limit, differ)",
    "vocabulary": "with another draft vocabulary",
}


def recipe(
    options: TrainOptions,
    config: DrafterConfig,
    ranks: int,
    target: str,
    answers: Iterable[Answer],
    vocabulary: Sequence[int],
    batches: int,
) -> Recipe:
    """`target` is its fingerprint; the number of `ranks` is part of it, since each takes its own batches."""
    chosen = {name: value for name, value in asdict(options).items() if name not in _MAY_CHANGE}
    shape: Recipe = {"ranks": ranks, **{name: getattr(config, name) for name in _SHAPE}}
    content = {
        "target": target,
        "answers": fingerprint.of_answers(answers),
        "vocabulary": fingerprint.of_ids(vocabulary),
    }
    return {**chosen, **shape, **content, "batches": batches}


def require_same(directory: Path, before: Recipe, now: Recipe, pre_fc_norm: str) -> None:
    """Raise InputError naming the first thing that the run in `directory` was begun with and is not asked for `now`.

    `pre_fc_norm`: which norms its weights have, since an older state does not say.
    """
    # what an older state does not know of was not chosen then
    before = {
        **asdict(TrainOptions()),
        "aux_layers": now["aux_layers"],
        "norm_output": False,
        "pre_fc_norm": pre_fc_norm,
        "sliding_window": None,
        "num_layers": 1,
        "mask_token_id": None,
        "causal_head": False,
        "ranks": 1,
        **{name: now[name] for name in _CONTENT},
        **before,
    }
    before = {name: value for name, value in before.items() if name not in _MAY_CHANGE}
    way = "go on with the same options and answers, or give another --out"
    for name in sorted(before.keys() | now.keys(), key=[*now, *before].index):
        if before.get(name) == now.get(name):
            continue
        if name in _CONTENT:
            raise InputError(f"{directory} holds a run {_CONTENT[name]}: {way}")
        raise InputError(f"{directory} holds a run with {name} {before.get(name)}, not {now.get(name)}: {way}")
