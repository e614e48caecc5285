"""What the drafter learns from: the target's auxiliary features and final hidden states, cached on disk."""

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from eagle3_serving.engine.target import Target
from eagle3_serving.errors import CheckError, InputError
from eagle3_serving.train import fingerprint
from eagle3_serving.train.data import Answer


@dataclass
class FeatureBatch:
    """Padded on the right. L tokens, R response rows; row r of request b is sequence position start_B[b] + r.

    A row at position i reads the features of i and token i + 1, and is taught by the target's state at i + 1.
    """

    tokens_BL: Tensor  # int64
    aux_BLF: Tensor
    final_BRH: Tensor  # the target's hidden state after its final norm, at position i + 1
    start_B: Tensor  # int64, the first response row: the last prompt position
    rows_B: Tensor  # int64, how many response rows

    @property
    def next_BR(self) -> Tensor:
        """The answer's own token that a row's draft is held against: the one at position i + 2."""
        offsets_R = torch.arange(self.final_BRH.shape[1], device=self.tokens_BL.device)
        return self.tokens_BL.gather(1, (self.start_B[:, None] + offsets_R + 2).clamp(max=self.tokens_BL.shape[1] - 1))

    @property
    def taught_BR(self) -> Tensor:
        """bool: rows with such a token; the last one has none."""
        return torch.arange(self.final_BRH.shape[1], device=self.rows_B.device) < self.rows_B[:, None] - 1

    def float(self) -> "FeatureBatch":
        return FeatureBatch(self.tokens_BL, self.aux_BLF.float(), self.final_BRH.float(), self.start_B, self.rows_B)

    def to(self, device: torch.device) -> "FeatureBatch":
        return FeatureBatch(*(getattr(self, field.name).to(device) for field in fields(self)))


@torch.inference_mode()
def extract_features(target: Target, answers: Sequence[Answer]) -> FeatureBatch:
    """One pass of the target over prompts and answers; `target` watches the boundaries that the drafter reads.

    Raises CheckError where the target gives what is no number.
    """
    sequences = [answer.prompt_ids + answer.response_ids for answer in answers]
    length = max(map(len, sequences))
    tokens_BL = torch.zeros(len(answers), length, dtype=torch.long)
    for b, sequence in enumerate(sequences):
        tokens_BL[b, : len(sequence)] = torch.tensor(sequence)
    # right padding under a causal mask never reaches the real rows
    tokens_BL = tokens_BL.to(target.device)
    aux_BLF, final_BLH = target.hidden_states(tokens_BL)
    longest = max(len(answer.response_ids) for answer in answers)
    start_B = torch.tensor([len(answer.prompt_ids) - 1 for answer in answers], device=target.device)
    rows_B = torch.tensor([len(answer.response_ids) for answer in answers], device=target.device)
    next_BR = (start_B[:, None] + 1 + torch.arange(longest, device=target.device)).clamp(max=length - 1)
    final_BRH = final_BLH.gather(1, next_BR[..., None].expand(-1, -1, final_BLH.shape[-1]))
    batch = FeatureBatch(tokens_BL, aux_BLF, final_BRH, start_B, rows_B).float()
    _require_finite(batch, answers, target)
    return batch


def _require_finite(batch: FeatureBatch, answers: Sequence[Answer], target: Target) -> None:
    """Raise CheckError naming the first answer, and the lowest place in the target that gives what is no number."""
    if bool(batch.aux_BLF.isfinite().all()) and bool(batch.final_BRH.isfinite().all()):
        return
    for b, answer in enumerate(answers):
        aux_LAH = batch.aux_BLF[b, : answer.length].unflatten(-1, (-1, target.hidden_size))
        places = [(f"boundary {k}", aux_LAH[:, i]) for k, i in sorted((k, i) for i, k in enumerate(target.watched))]
        places.append(("its final norm", batch.final_BRH[b, : len(answer.response_ids)]))
        for place, rows_NH in places:
            if not bool(rows_NH.isfinite().all()):
                raise CheckError(
                    f"{target.name}: the target gives NaN or infinities at {place}, first seen in answer {answer.id}; its "
                    "weights are damaged or do not fit the dtype: fetch it again, or try --no-bf16"
                )


Extract = Callable[[Sequence[Answer]], FeatureBatch]


class FeatureCache:
    """One safetensors file an answer, bf16; written beside and renamed, so that a kill leaves no half file.

    A file's name is a hash of `kind` (whose features, which boundaries) and the tokens, so that other answers, batches
    and runs share a directory and never meet features that are not theirs. Without a directory nothing is kept: right
    where the target is faster than the disk.
    """

    def __init__(self, directory: Path | None, kind: str = "") -> None:
        self.directory, self.kind = directory, kind
        if directory is not None:
            directory.mkdir(parents=True, exist_ok=True)

    def get(self, answers: Sequence[Answer], extract: Extract) -> FeatureBatch:
        """The features of `answers`, computed at the first call; rounded to bf16 then too, so that a resumed run
        sees what an undisturbed one saw. Raises CheckError where they cannot be written."""
        if self.directory is None:
            return extract(answers)
        stored = [self._load(answer) for answer in answers]
        if any(parts is None for parts in stored):
            batch = extract(answers)  # all of them: a batch's features are then one pass's, killed or not
            for b, answer in enumerate(answers):
                if stored[b] is None:
                    self._save(
                        answer, batch.aux_BLF[b, : answer.length], batch.final_BRH[b, : len(answer.response_ids)]
                    )
            stored = [self._load(answer) for answer in answers]
        return padded(answers, [parts for parts in stored if parts is not None])

    def _load(self, answer: Answer) -> dict[str, Tensor] | None:
        """None where it is not there, or damaged: it is made anew then."""
        path = self._path(answer)
        if not path.exists():
            return None
        try:
            parts: dict[str, Tensor] = load_file(path)
        except (SafetensorError, OSError):
            return None
        return parts

    def fill(self, batches: Sequence[Sequence[Answer]], extract: Extract) -> Iterator[int]:
        """Make what is missing, batch by batch; yields each batch's tokens."""
        assert self.directory is not None
        for answers in batches:
            if self.missing(answers):
                self.get(answers, extract)
            yield sum(answer.length for answer in answers)

    def missing(self, answers: Sequence[Answer]) -> Sequence[Answer]:
        """Those of `answers` that are not kept: all where one of them is not, since a batch is one pass's."""
        kept = self.directory is not None and all(self._path(answer).exists() for answer in answers)
        return () if kept else answers

    def missing_bytes(self, answers: Sequence[Answer], features: int, hidden: int) -> int:
        """What `answers` will add on disk; `features` and `hidden` are the widths of a row's two tensors."""
        if self.directory is None:
            return 0
        missing = [answer for answer in answers if not self._path(answer).exists()]
        return sum(2 * (features * a.length + hidden * len(a.response_ids)) + _FILE_BYTES for a in missing)

    def _path(self, answer: Answer) -> Path:
        assert self.directory is not None
        key = repr((self.kind, answer.prompt_ids, answer.response_ids))
        return self.directory / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.safetensors"

    def _save(self, answer: Answer, aux_LF: Tensor, final_RH: Tensor) -> None:
        path = self._path(answer)
        # the process's own name: two runs may fill one directory
        beside = path.with_name(f".{path.name}.{os.getpid()}.partial")
        tensors = {"aux_LF": aux_LF, "final_RH": final_RH}
        try:
            beside.write_bytes(save({name: t.bfloat16().contiguous().cpu() for name, t in tensors.items()}))
        except OSError as error:
            beside.unlink(missing_ok=True)
            raise CheckError(
                f"{path.parent}: features cannot be written ({error.strerror}); free some space, or train with --no-cache-features"
            ) from None
        beside.replace(path)


class Passes(Protocol):
    """Who makes the target's passes elsewhere."""

    def ahead(self, answers: Sequence[Answer]) -> None:
        """Begin with what will be wanted next."""
        ...

    def extract(self, answers: Sequence[Answer]) -> FeatureBatch: ...


class FeatureSource:
    """The features that one drafter reads, through a cache that may hold more boundaries than it does."""

    def __init__(
        self,
        target: Target,
        aux_layers: Sequence[int],
        directory: Path | None,
        *,
        watched: Sequence[int] | None = None,
        bf16: bool = True,
        passes: Passes | None = None,
    ) -> None:
        """`watched`: the boundaries to keep, `aux_layers` among them, so that other drafters can read the cache too.
        `passes`: who makes the target's passes, where it is not `target` itself."""
        watched = tuple(watched or aux_layers)
        if passes is None:
            target.watch(watched)
        self.target, self.bf16, self.hidden, self.passes = target, bf16, target.hidden_size, passes
        self.width = len(watched) * target.hidden_size
        self.columns = None if watched == tuple(aux_layers) else [watched.index(k) for k in aux_layers]
        self.fingerprint = fingerprint.of_target(target)
        precise = "served" if passes is not None else "bf16" if bf16 else target.dtype
        self.cache = FeatureCache(directory, f"{self.fingerprint} {watched} {precise}")

    def extract(self, answers: Sequence[Answer]) -> FeatureBatch:
        """A pass of the target over `answers`, every watched boundary."""
        if self.passes is not None:
            return self.passes.extract(answers)
        with precision(self.target.device, self.bf16):
            return extract_features(self.target, answers)

    def ahead(self, answers: Sequence[Answer]) -> None:
        """What will be wanted next, so that others can begin with it."""
        if self.passes is not None:
            self.passes.ahead(self.cache.missing(answers))

    def fill(self, batches: Sequence[Sequence[Answer]]) -> Iterator[int]:
        return self.cache.fill(batches, self.extract)

    def missing_bytes(self, answers: Sequence[Answer]) -> int:
        """What the features of `answers` will add on disk."""
        return self.cache.missing_bytes(answers, self.width, self.hidden)

    def __call__(self, answers: Sequence[Answer]) -> FeatureBatch:
        batch = self.cache.get(answers, self.extract)
        if self.columns is not None:
            kept = batch.aux_BLF.unflatten(-1, (-1, self.hidden))[:, :, self.columns]
            batch.aux_BLF = kept.flatten(2)
        return batch


def precision(device: torch.device, bf16: bool) -> torch.autocast:
    """Matrix products in bfloat16, or as they are."""
    # without a cache of casts: a cast made for the target in inference mode cannot be trained through
    return torch.autocast(device.type, torch.bfloat16, enabled=bf16, cache_enabled=False)


@torch.no_grad()
def norm_weight(target: Target) -> Tensor:
    """What the target's final norm multiplies a state of rms 1 by [H], however it is stored (Gemma keeps it minus 1).

    Raises InputError where it is no root-mean-square norm.
    """
    ones_1H = torch.ones(1, target.hidden_size, device=target.device, dtype=target.dtype)
    weight_H: Tensor = target.body.norm(ones_1H)[0].float()
    if not weight_H.any():
        raise InputError(f"{target.name}: its final norm is no RMSNorm; drafters are trained for targets that have one")
    return weight_H


_FILE_BYTES = 4096  # header and the file system's rounding


def padded(answers: Sequence[Answer], stored: Sequence[dict[str, Tensor]]) -> FeatureBatch:
    """Answers' tensors as one batch, zeros behind."""
    aux, final = [parts["aux_LF"] for parts in stored], [parts["final_RH"] for parts in stored]
    tokens = [torch.tensor(answer.prompt_ids + answer.response_ids) for answer in answers]
    pad = partial(torch.nn.utils.rnn.pad_sequence, batch_first=True)
    start_B = torch.tensor([len(answer.prompt_ids) - 1 for answer in answers])
    rows_B = torch.tensor([len(answer.response_ids) for answer in answers])
    return FeatureBatch(pad(tokens), pad(aux), pad(final), start_B, rows_B).float()
