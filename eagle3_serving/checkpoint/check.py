"""`eagle3 check`: the invariants of a checkpoint, and what each engine would make of it."""

from codecs import BOM_UTF8
from pathlib import Path

import torch

from eagle3_serving.checkpoint.aux_layers import Convention
from eagle3_serving.checkpoint.engines import ENGINES, SERVERS
from eagle3_serving.checkpoint.facts import TargetFacts
from eagle3_serving.checkpoint.findings import ORDER, Finding
from eagle3_serving.checkpoint.neutral import Neutral
from eagle3_serving.checkpoint.read import read
from eagle3_serving.checkpoint.source import StoredTensor, open_source
from eagle3_serving.errors import CheckError, InputError

_CHUNK = 1 << 24  # bytes
_RANDOM = (0.018, 0.022)  # the spread of an embedding that was only initialised


def check(
    directory: Path,
    *,
    engine: str | None = None,
    target: Path | None = None,
    num_target_layers: int | None = None,
    aux_convention: Convention | None = None,
    dialect: str | None = None,
    values: bool = True,
) -> list[Finding]:
    """What is not right with the drafter in `directory`: itself, and in `engine` ("vllm", "sglang", "eagle"; None asks
    vLLM and SGLang). `values` reads every weight, for NaN, infinities and zeros; without, headers alone are read.

    The worst comes first; nothing is wrong where no finding `breaks`. Raises InputError where it cannot be read.
    """
    if engine is not None and engine not in ENGINES:
        raise InputError(f"there is no engine {engine!r}; known are {', '.join(ENGINES)}")
    facts = TargetFacts.of(target, num_target_layers)
    try:
        neutral = read(
            open_source(directory), dialect=dialect, num_target_layers=facts.num_layers, aux_convention=aux_convention
        )
    except CheckError as error:
        text = str(error).removeprefix(f"{directory}: ")
        return [Finding("error", "any", str(directory.name), text, "")]
    return findings_of(neutral, facts, (engine,) if engine else SERVERS, values)


def findings_of(neutral: Neutral, facts: TargetFacts, engines: tuple[str, ...], values: bool = True) -> list[Finding]:
    """As `check`, of a checkpoint that was read."""
    found = list(neutral.findings) + _of_target(neutral, facts)
    aux = neutral.aux
    if aux.boundaries is None:
        found.append(Finding("note" if aux.default else "warning", "any", "eagle_aux_hidden_state_layer_ids",
                             aux.problem, aux.fix))  # fmt: skip
    if values:
        found += _of_values(neutral)
    for name in engines:
        found += ENGINES[name].view(neutral, facts).findings
    if engines and (neutral.source.directory / "config.json").read_bytes()[:3] == BOM_UTF8:
        found.append(Finding("error", "any", "config.json", "begins with a byte-order mark, at which engines stop",
                             "save it as UTF-8 without one, or convert it"))  # fmt: skip
    return sorted(dict.fromkeys(found), key=lambda finding: ORDER.index(finding.severity))


def _of_target(neutral: Neutral, facts: TargetFacts) -> list[Finding]:
    config, found = neutral.config, []
    for key, own, target in (
        ("target_hidden_size", config.target_hidden_size, facts.hidden_size),
        ("vocab_size", config.vocab_size, facts.vocab_size),
    ):
        if target is not None and own != target:
            found.append(
                Finding("error", "any", key, f"is {own}, the target has {target}", "it is another target's drafter")
            )
    return found


def _of_values(neutral: Neutral) -> list[Finding]:
    found = []
    for name, tensor in neutral.tensors.items():
        if tensor.dtype.itemsize == 1 or not tensor.nbytes:
            continue
        total = squares = 0.0
        whole, zero = True, True
        rows = max(1, _CHUNK // max(1, tensor.nbytes // max(tensor.num_rows, 1)))
        for start in range(0, tensor.num_rows, rows):
            piece = tensor.rows(start, min(start + rows, tensor.num_rows)).float()
            whole &= bool(piece.isfinite().all())
            zero &= not bool(piece.any())
            total += float(piece.sum())
            squares += float(piece.square().sum())
        if not whole:
            found.append(Finding("error", "any", tensor.name, "holds NaN or infinities", "export it again"))
        elif zero and not name.endswith(".bias"):
            found.append(Finding("error", "any", tensor.name, "is all zero", "export it again"))
        elif name in ("embed_tokens.weight", "lm_head.weight") and _looks_random(tensor, total, squares):
            found.append(Finding("warning", "any", tensor.name, "looks as initialised, N(0, 0.02): was it trained?",
                                 "leave the embedding to the target, or export it again"))  # fmt: skip
    return found


def _looks_random(tensor: StoredTensor, total: float, squares: float) -> bool:
    count = tensor.nbytes // tensor.dtype.itemsize
    mean, spread = total / count, (squares / count) ** 0.5
    if count < 10_000 or not _RANDOM[0] < spread < _RANDOM[1] or abs(mean) > 0.02 / count**0.5 * 5:
        return False
    # rows of a trained matrix differ in length; a random one's do not
    lengths = tensor.rows(0, min(tensor.num_rows, 2048)).float().norm(dim=1)
    expected = 0.02 / 2**0.5
    return bool(torch.std(lengths) < 2 * expected)
