"""Exact rewrites of a neutral drafter: the same function, in the order and with the tensors that a reader wants."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from eagle3_serving.checkpoint.dialects.base import Dialect
from eagle3_serving.checkpoint.dialects.common import unlike_target
from eagle3_serving.checkpoint.dialects.sglang import own_embedding_is_meant
from eagle3_serving.checkpoint.facts import TargetFacts
from eagle3_serving.checkpoint.neutral import Neutral
from eagle3_serving.checkpoint.source import StoredTensor
from eagle3_serving.errors import CheckError

EMBEDDING, HEAD = "embed_tokens.weight", "lm_head.weight"


def sort_features(neutral: Neutral) -> Neutral:
    """Auxiliary layers in ascending order, the columns of `fc` and the norms before it with them (engines sort)."""
    layers, width = neutral.config.aux_layers, neutral.config.target_hidden_size
    order = sorted(range(len(layers)), key=layers.__getitem__)
    if order == list(range(len(layers))):
        return neutral
    columns = torch.cat([torch.arange(i * width, (i + 1) * width) for i in order])
    tensors = dict(neutral.tensors)
    _refuse_scaled(neutral, "fusion.fc")
    tensors["fusion.fc.weight"] = _mapped(tensors["fusion.fc.weight"], lambda rows: rows[:, columns])
    for name, tensor in neutral.tensors.items():
        if name == "fusion.input_norm.weight":
            tensors[name] = _reordered(tensor, columns)
        elif name.startswith("fusion.fc_norm."):
            tensors[name] = neutral.tensors[f"fusion.fc_norm.{order[int(name.split('.')[2])]}.weight"]
    mask = neutral.mask_hidden
    if mask is not None:
        mask = _mapped(mask, lambda rows: rows[..., columns])
    config = replace(neutral.config, aux_layers=tuple(layers[i] for i in order))
    return replace(neutral, config=config, tensors=tensors, mask_hidden=mask)


def sort_vocabulary(neutral: Neutral) -> Neutral:
    """Draft tokens in the order of target ids, the rows of the head with them: trainers take t2d for the map."""
    ids = neutral.target_ids
    if ids is None or bool((ids.diff() > 0).all()):
        return neutral
    _refuse_scaled(neutral, "lm_head")
    order = ids.argsort()
    tensors = {**neutral.tensors, HEAD: _reordered(neutral.tensors[HEAD], order)}
    sorted_ids = ids[order]
    whole = len(ids) == neutral.config.vocab_size
    return replace(neutral, tensors=tensors, target_ids=None if whole else sorted_ids)


def resolve_shared(
    neutral: Neutral, dialect: Dialect, facts: TargetFacts, noted: Mapping[str, object]
) -> tuple[Neutral, list[str], list[str]]:
    """Embedding and head as `dialect` wants them: stored, or left to the target.

    `noted` is an earlier conversion's provenance. Returns the drafter, the names of tensors taken from the target, and
    notes for the report.
    """
    tensors, head, taken, notes = dict(neutral.tensors), neutral.head, [], []
    before = noted.get("materialised")
    if isinstance(before, list):  # what a conversion took from the target, the next one gives back
        for name in (EMBEDDING, HEAD):
            wanted = name == EMBEDDING and dialect.wants_embedding
            if name in before and name in tensors and not wanted and (name == EMBEDDING or neutral.target_ids is None):
                del tensors[name]
                head = "target" if name == HEAD else head
            elif name in before and name in tensors:
                taken.append(name)
    same_width = neutral.config.hidden_size == neutral.config.target_hidden_size
    apart = unlike_target(neutral, facts) if EMBEDDING in tensors and same_width else 0.0
    replaced = dialect.name in ("sglang", "universal")  # SGLang puts the target's in the place of any copy
    if apart and not own_embedding_is_meant(neutral):
        del tensors[EMBEDDING]
        notes.append(
            f"embed_tokens.weight is {apart:.2%} from the target's, with which the drafter was trained: left out"
        )
    elif apart and replaced:
        notes.append(f"embed_tokens.weight is {apart:.2%} from the target's, which SGLang puts in its place")
    elif EMBEDDING in tensors and same_width and replaced and facts.embedding is None:
        notes.append(
            "SGLang puts the target's embedding in the place of embed_tokens.weight: compare them with --target DIR"
        )
    if dialect.wants_embedding and EMBEDDING not in tensors:
        if facts.embedding is not None and same_width:
            tensors[EMBEDDING] = facts.embedding
            taken.append(EMBEDDING)
        else:
            notes.append("no embedding is stored: the engine takes the target's (--target DIR would store it)")
    if head == "tied" and not (dialect.name == "sglang" and EMBEDDING not in tensors):
        source = tensors.get(EMBEDDING) or facts.embedding
        if source is not None:
            tensors[HEAD], head = source, "own"
            notes.append("the head was tied to the embedding: stored as lm_head.weight")
    if head == "target" and dialect.name == "eagle" and facts.head is not None:
        tensors[HEAD], head = facts.head, "own"
        taken.append(HEAD)
    config = replace(neutral.config, own_embedding=EMBEDDING in tensors)
    return replace(neutral, tensors=tensors, head=head, config=config), taken, notes


def without_embedding(neutral: Neutral) -> Neutral:
    """The same with the target's embedding, in place of a copy that a conversion leaves out or replaces."""
    tensors = {name: tensor for name, tensor in neutral.tensors.items() if name != EMBEDDING}
    return replace(neutral, tensors=tensors, config=replace(neutral.config, own_embedding=False))


def cast(tensors: dict[str, StoredTensor], dtype: torch.dtype, where: object) -> dict[str, StoredTensor]:
    """Weights in `dtype`; whole numbers, scales and what is scaled stay. What makes an infinity or a NaN of a number raises
    CheckError when it is read, naming `where` and the tensor."""
    plain = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

    def stays(name: str, tensor: StoredTensor) -> bool:
        return tensor.dtype not in plain or tensor.dtype == dtype or "_scale" in name or "zero_point" in name

    return {
        name: tensor if stays(name, tensor) else _mapped(tensor, partial(_to, f"{where}: {tensor.name}", dtype), dtype)
        for name, tensor in tensors.items()
    }


def _to(name: str, dtype: torch.dtype, rows: Tensor) -> Tensor:
    """`rows` of tensor `name` in `dtype`."""
    made = rows.to(dtype)
    if bool(made.isfinite().all()):
        return made
    finite = rows[rows.isfinite()]
    lost = int((~made.isfinite()).sum()) - (rows.numel() - finite.numel())
    if not lost:
        raise CheckError(not_finite(name, rows))
    largest = float(finite.abs().max())
    # as narrow as holds it
    wider = (d for d in (torch.bfloat16, torch.float32) if bool(finite.to(d).isfinite().all()))
    better = next((f"use --dtype {str(d).removeprefix('torch.')}" for d in wider), "leave --dtype out")
    raise CheckError(
        f"{name}: {str(dtype).removeprefix('torch.')} holds nothing beyond {torch.finfo(dtype).max:g}, and {lost} of its numbers "
        f"are larger, up to {largest:g}; {better}"
    )


def not_finite(name: str, rows: Tensor) -> str:
    """The line on a tensor that holds what is no number."""
    nan, infinite = int(rows.isnan().sum()), int(rows.isinf().sum())
    counted = [f"{count} {what}" for count, what in ((nan, "NaN"), (infinite, "infinities")) if count]
    return f"{name}: holds {' and '.join(counted)}; no conversion mends that: export it again"


def require_finite(tensors: Iterable[StoredTensor], where: object) -> None:
    """Raise CheckError naming the first tensor with a NaN or an infinity; a few rows are in memory at a time."""
    for tensor in tensors:
        if not (tensor.dtype.is_floating_point and tensor.nbytes):
            continue
        for piece in tensor.pieces():
            rows = piece.float() if piece.dtype.itemsize == 1 else piece
            if not bool(rows.isfinite().all()):
                raise CheckError(not_finite(f"{where}: {tensor.name}", rows))


def _mapped(tensor: StoredTensor, change: Callable[[Tensor], Tensor], dtype: torch.dtype | None = None) -> StoredTensor:
    return replace(tensor, dtype=dtype or tensor.dtype, span=None, load=lambda a, b: change(tensor.load(a, b)))


def _reordered(tensor: StoredTensor, order: Tensor) -> StoredTensor:
    """Row i becomes row order[i] of `tensor`."""

    def load(start: int, stop: int) -> Tensor:
        wanted = order[start:stop]
        low, high = int(wanted.min()), int(wanted.max())
        return tensor.load(low, high + 1)[wanted - low]

    return replace(tensor, span=None, load=load)


def _refuse_scaled(neutral: Neutral, module: str) -> None:
    if any(name.startswith(f"{module}.") for name in neutral.scales):
        raise CheckError(f"{neutral.where}: {module} is quantised and would have to be reordered; convert it before")
