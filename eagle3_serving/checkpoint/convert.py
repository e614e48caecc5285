"""One drafter, another dialect: read, rewrite exactly, write beside, prove, rename."""

import math
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from json import dumps
from pathlib import Path
from typing import Any

import torch

from eagle3_serving import __version__
from eagle3_serving.checkpoint.aux_layers import Convention
from eagle3_serving.checkpoint.check import findings_of
from eagle3_serving.checkpoint.dequantize import packed
from eagle3_serving.checkpoint.dialects import DIALECTS, WRITABLE, Dialect
from eagle3_serving.checkpoint.dialects.base import OURS, provenance
from eagle3_serving.checkpoint.dialects.sglang import EMBEDDING_NOTE, TARGETS, own_embedding_is_meant
from eagle3_serving.checkpoint.engines import ENGINES
from eagle3_serving.checkpoint.facts import TargetFacts
from eagle3_serving.checkpoint.feedback import NormOutput
from eagle3_serving.checkpoint.findings import Finding
from eagle3_serving.checkpoint.neutral import Neutral
from eagle3_serving.checkpoint.parity import Parity, compare
from eagle3_serving.checkpoint.read import read
from eagle3_serving.checkpoint.rewrites import (
    EMBEDDING,
    cast,
    require_finite,
    resolve_shared,
    sort_features,
    sort_vocabulary,
    without_embedding,
)
from eagle3_serving.checkpoint.source import Json, Source, open_source, resolve
from eagle3_serving.checkpoint.write import Progress, write_safetensors
from eagle3_serving.dtypes import TORCH, short_dtype
from eagle3_serving.errors import CheckError, InputError
from eagle3_serving.files import require_absent

# files that travel with a drafter as they are; nothing in them depends on the dialect
_COMPANIONS = ("README.md", "LICENSE", "LICENSE.txt", "NOTICE", "calibration.json", "hf_quant_config.json", "generation_config.json")  # fmt: skip
_TOLERANCE = 1e-4  # of the largest logit: sums in another order


@dataclass(frozen=True)
class Report:
    """What a conversion did. `parity` is empty where it was not asked for or cannot be run; `parity_note` says which."""

    source: str
    source_dialect: str
    source_blake3: str
    to: str
    destination: str
    aux_boundaries: tuple[int, ...]
    aux_how: str
    tensors: int
    bytes: int
    parity: tuple[Parity, ...]
    parity_note: str
    notes: tuple[str, ...]
    findings: tuple[Finding, ...]
    seconds: float

    def to_json(self) -> Json:
        """What `--json` prints."""
        return asdict(self)


def convert(
    source: str | Path,
    destination: Path,
    *,
    to: str,
    target: Path | None = None,
    num_target_layers: int | None = None,
    aux_convention: Convention | None = None,
    dialect: str | None = None,
    norm_output: NormOutput | None = None,
    dtype: str | None = None,
    parity: bool = True,
    progress: Callable[[int, int], Progress] | None = None,
) -> Report:
    """Write the drafter `source` (a directory or a hub id) to `destination` in the dialect `to`.

    `destination` must not exist, or be an empty directory; it appears whole or not at all. `dialect` overrides what the
    source is taken for, `aux_convention` and `norm_output` answer what it leaves open, `dtype` (any name of
    `dtypes.short_dtype`) casts weights. `progress(total, 0)` is given the bytes to
    write and returns what is told of each piece. Raises InputError where something cannot be read or is asked for
    wrongly, CheckError where the source is not right, `to` cannot express it, or the proof fails.
    """
    started = time.perf_counter()
    if to not in WRITABLE:
        raise InputError(f"cannot write dialect {to!r}; known are {', '.join(WRITABLE)}")
    dtype = None if dtype is None else TORCH.get(short_dtype(dtype))  # auto: as they are
    require_absent(destination)
    facts = TargetFacts.of(target, num_target_layers)
    opened = open_source(resolve(str(source)))
    meant = read(
        opened,
        dialect=dialect,
        num_target_layers=facts.num_layers,
        aux_convention=aux_convention,
        norm_output=norm_output,
    )
    meant.require_right(depth=to != "eagle")
    found = findings_of(meant, facts, (), values=False)
    for finding in found:
        if finding.breaks:
            raise CheckError(f"{meant.where}: {finding.line()}")
    facts = facts.cut(meant.config.vocab_size)
    wanted = DIALECTS[to]
    rewritten, taken, notes = resolve_shared(meant, wanted, facts, provenance(opened))
    rewritten = sort_features(rewritten)
    if wanted.wants_sorted_vocabulary or rewritten.config.draft_vocab_size == rewritten.config.vocab_size:
        rewritten = sort_vocabulary(rewritten)
    assert wanted.refusals is not None and wanted.write is not None
    refused = wanted.refusals(rewritten, facts)
    if refused:
        raise CheckError(f"{meant.where}: {wanted.title} cannot express {'; nor '.join(refused)}")
    float_type = dtype or _dtype_of(rewritten)
    output = wanted.write(rewritten, facts, float_type)
    tensors = cast(output.tensors, getattr(torch, dtype), meant.where) if dtype else output.tensors
    if dtype and any(tensors[name] is not output.tensors[name] for name in tensors):
        notes.append(f"weights were cast to {dtype}")

    beside = _beside(destination)
    try:
        if parity:  # a number that the proof does not touch, as a token's that it does not draft, is found here
            require_finite([*rewritten.tensors.values(), *rewritten.scales.values()], meant.where)
        with ThreadPoolExecutor(1) as pool:
            hashed = pool.submit(opened.digest)
            total = sum(tensor.nbytes for tensor in tensors.values())
            tell = progress(total, 0) if progress else lambda _: None
            written = write_safetensors(
                beside / "model.safetensors", tensors, {**opened.metadata, "format": "pt"}, tell
            )
            digest = hashed.result()
        noted = _provenance(opened, source, meant, wanted, facts, taken, digest)
        config = {**output.config, OURS: noted}
        (beside / "config.json").write_text(dumps(config, indent=2) + "\n", encoding="utf-8")
        _copy_companions(opened.directory, beside)
        proved = meant if rewritten.tensors.get(EMBEDDING) is meant.tensors.get(EMBEDDING) else without_embedding(meant)
        proofs, note = _prove(proved, beside, wanted, facts, parity, dtype is not None)
        beside.chmod(0o755)
        _publish(beside, destination)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return Report(
        source=str(source),
        source_dialect=meant.dialect,
        source_blake3=digest,
        to=to,
        destination=str(destination),
        aux_boundaries=rewritten.config.aux_layers if -1 not in rewritten.config.aux_layers else (),
        aux_how=meant.aux.how,
        tensors=len(tensors),
        bytes=written,
        parity=proofs,
        parity_note=note,
        notes=tuple(notes),
        findings=tuple(found),
        seconds=time.perf_counter() - started,
    )


def _beside(destination: Path) -> Path:
    """A new hidden folder beside `destination`. Raises InputError where none can be made."""
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(dir=destination.parent, prefix=f".{destination.name[:60]}.partial-"))
    except OSError as error:
        raise InputError(f"{destination} cannot be made: {destination.parent}: {error.strerror}") from None


def _publish(beside: Path, destination: Path) -> None:
    """Rename. Raises InputError where `destination` came to be while this conversion ran."""
    try:
        os.rename(beside, destination)
    except OSError as error:
        if not destination.exists():
            raise
        raise InputError(
            f"{destination} was made by another process while this conversion ran ({error.strerror}); what stands there is not "
            "touched: remove it, or name another destination"
        ) from None


def _prove(
    meant: Neutral, output: Path, dialect: Dialect, facts: TargetFacts, wanted: bool, cast_weights: bool
) -> tuple[tuple[Parity, ...], str]:
    """Read the output as each of its engines would, let nothing be found, and compare with what was meant."""
    again = read(open_source(output), num_target_layers=facts.num_layers)
    again.require_right(depth=False)
    if -1 not in meant.config.aux_layers and again.aux.boundaries is None:
        again = replace(again, config=replace(again.config, aux_layers=tuple(sorted(meant.config.aux_layers))))
    proofs = []
    blocked = packed(meant)
    for engine in dialect.engines:
        view = ENGINES[engine].view(again, facts)
        broken = [finding for finding in view.findings if finding.breaks]
        if broken:
            raise CheckError(f"{meant.where}: the conversion would not be right in {engine}: {broken[0].line()}")
        if not wanted or blocked:
            continue
        proof = compare(engine, meant, view, facts)
        if not math.isfinite(proof.largest_logit + proof.max_difference):
            raise CheckError(f"{meant.where}: no parity in {engine}: its numbers are finite, and its logits are not")
        close = proof.tokens_equal and proof.max_difference <= _TOLERANCE * max(1.0, proof.largest_logit)
        if not close and not cast_weights:
            raise CheckError(
                f"{meant.where}: no parity in {engine}: logits differ by {proof.max_difference:.3g}, tokens "
                f"{'agree' if proof.tokens_equal else 'differ'}; please report it"
            )
        proofs.append(proof)
    if not wanted:
        return (), "parity was not checked: --no-parity"
    return tuple(proofs), f"parity cannot be run: {blocked} is packed" if blocked else ""


def _provenance(
    opened: Source, source: str | Path, meant: Neutral, to: Dialect, facts: TargetFacts, taken: list[str], digest: str
) -> Json:
    """Where the output came from; no path, only the last name of a local one."""
    noted: dict[str, Any] = {
        "version": __version__,
        "dialect": to.name,
        "source": Path(str(source)).resolve().name if Path(str(source)).exists() else str(source),
        "source_dialect": meant.dialect,
        "source_blake3": digest,
        "materialised": taken,
    }
    if -1 not in meant.config.aux_layers:
        noted["aux_boundaries"] = sorted(meant.config.aux_layers)
    own_width = meant.config.hidden_size != meant.config.target_hidden_size
    if meant.config.own_embedding and not own_width and not own_embedding_is_meant(meant):
        noted[EMBEDDING_NOTE] = TARGETS
    if meant.verifier:
        noted["verifier"] = meant.verifier
    if facts.num_layers is not None:
        noted["num_target_layers"] = facts.num_layers
    if facts.model_type is not None:
        noted["target_type"] = facts.model_type
    before = provenance(opened)
    if before:
        noted["before"] = {key: before[key] for key in ("source", "source_dialect", "source_blake3") if key in before}
    return noted


def _dtype_of(neutral: Neutral) -> str:
    stored = neutral.tensors.get("layers.0.input_layernorm.weight") or neutral.tensors["fusion.fc.weight"]
    return str(stored.dtype).removeprefix("torch.")


def _copy_companions(source: Path, destination: Path) -> None:
    """Small files beside the weights. A link that leaves the folder is not followed, the hub cache's blobs excepted."""
    blobs = source.resolve().parent.parent / "blobs"
    for name in _COMPANIONS:
        path = source / name
        if not path.is_file() or path.stat().st_size > 1 << 24:
            continue
        real = path.resolve()
        if real.parent in (source.resolve(), blobs):
            shutil.copyfile(real, destination / name)
