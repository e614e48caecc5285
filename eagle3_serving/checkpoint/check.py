"""`eagle3 check`: the invariants of a checkpoint, and what each engine would make of it."""

from codecs import BOM_UTF8
from dataclasses import replace
from pathlib import Path

import torch

from eagle3_serving.checkpoint import rope
from eagle3_serving.checkpoint.aux_layers import Convention
from eagle3_serving.checkpoint.dequantize import packed
from eagle3_serving.checkpoint.dialects import DIALECTS
from eagle3_serving.checkpoint.dialects.common import LITTLE, unlike_target
from eagle3_serving.checkpoint.dialects.quantization import quantised_in_part
from eagle3_serving.checkpoint.engines import ENGINES, SERVERS
from eagle3_serving.checkpoint.facts import TargetFacts
from eagle3_serving.checkpoint.feedback import NormOutput
from eagle3_serving.checkpoint.findings import ORDER, Finding
from eagle3_serving.checkpoint.names import canonical_name
from eagle3_serving.checkpoint.neutral import Neutral
from eagle3_serving.checkpoint.read import layer_config, read
from eagle3_serving.checkpoint.rewrites import sort_features
from eagle3_serving.checkpoint.source import StoredTensor, open_source
from eagle3_serving.errors import CheckError, InputError, NotJudged

_KINDS = ("llama", "qwen2", "qwen3", "mistral")  # whose config classes leave absent keys as they are read here
_PADDED = 1.02  # rows of a padded vocabulary, at most
_RANDOM = (0.018, 0.022)  # the spread of an embedding that was only initialised


def check(
    directory: Path,
    *,
    engine: str | None = None,
    target: Path | None = None,
    num_target_layers: int | None = None,
    aux_convention: Convention | None = None,
    dialect: str | None = None,
    norm_output: NormOutput | None = None,
    values: bool = True,
) -> list[Finding]:
    """What is not right with the drafter in `directory`: itself, and in `engine` ("vllm", "sglang", "eagle"; None asks
    vLLM and SGLang). `values` reads every weight, for NaN, infinities and zeros; without, headers alone are read.

    The worst comes first; `findings.verdict` makes one answer of them. Raises InputError where it cannot be read.
    """
    if engine is not None and engine not in ENGINES:
        raise InputError(f"there is no engine {engine!r}; known are {', '.join(ENGINES)}")
    facts = TargetFacts.of(target, num_target_layers)
    try:
        neutral = read(
            open_source(directory),
            dialect=dialect,
            num_target_layers=facts.num_layers,
            aux_convention=aux_convention,
            norm_output=norm_output,
        )
    except NotJudged as error:
        text = str(error).removeprefix(f"{directory}: ")
        return [Finding("unjudged", "any", str(directory.name), text, "")]
    except CheckError as error:
        text = str(error).removeprefix(f"{directory}: ")
        return [Finding("error", "any", str(directory.name), text, "")]
    return findings_of(neutral, facts, (engine,) if engine else SERVERS, values)


def findings_of(neutral: Neutral, facts: TargetFacts, engines: tuple[str, ...], values: bool = True) -> list[Finding]:
    """As `check`, of a checkpoint that was read."""
    found = list(neutral.findings) + _of_target(neutral, facts) + _of_meaning(neutral)
    facts = facts.cut(neutral.config.vocab_size)
    aux = neutral.aux
    if aux.boundaries is None:
        found.append(Finding("error" if aux.wrong else "note" if aux.default else "unjudged", "any",
                             "eagle_aux_hidden_state_layer_ids", aux.problem, aux.fix))  # fmt: skip
    if values:
        found += _of_values(neutral)
    broken = next((finding.where for finding in found if finding.breaks), None)
    for name in engines:
        found += _with_ways_out(neutral, facts, name, broken, ENGINES[name].view(neutral, facts).findings)
    if engines and (neutral.source.directory / "config.json").read_bytes()[:3] == BOM_UTF8:
        found.append(Finding("error", "any", "config.json", "begins with a byte-order mark, at which engines stop",
                             "save it as UTF-8 without one, or convert it"))  # fmt: skip
    return sorted(dict.fromkeys(found), key=lambda finding: ORDER.index(finding.severity))


def _with_ways_out(
    neutral: Neutral, facts: TargetFacts, engine: str, broken: str | None, found: tuple[Finding, ...]
) -> list[Finding]:
    """`found` in `engine`, where a conversion is offered as the way out only if it would not be refused. `broken`: what is
    wrong with the checkpoint itself."""
    offered = f"eagle3-convert --to {engine}"
    if all(finding.fix != offered for finding in found):
        return list(found)
    refusals = DIALECTS[engine].refusals
    assert refusals is not None
    refused = refusals(sort_features(neutral), facts)
    if -1 in neutral.config.aux_layers:  # the target's depth, which a conversion asks for, decides about these
        refused = [line for line in refused if not line.startswith("auxiliary boundaries")]
    if broken is not None:
        fix = f"no conversion helps before {broken} is mended"
    elif refused:
        fix = f"no conversion helps: {DIALECTS[engine].title} cannot express {'; nor '.join(refused)}"
    else:
        return list(found)
    return [replace(finding, fix=fix) if finding.fix == offered else finding for finding in found]


def _of_target(neutral: Neutral, facts: TargetFacts) -> list[Finding]:
    config, found = neutral.config, []
    width, rows = facts.hidden_size, facts.vocab_size
    if width is not None and config.target_hidden_size != width:
        found.append(Finding("error", "any", "target_hidden_size", f"is {config.target_hidden_size}, the target has {width}",
                             "it is another target's drafter"))  # fmt: skip
    if rows is not None and config.vocab_size != rows:
        found.append(_of_padding(neutral, facts, rows))
    positions = facts.max_position_embeddings
    if positions is not None and config.max_position_embeddings < positions:
        found.append(Finding("warning", "any", "max_position_embeddings",
                             f"is {config.max_position_embeddings}, the target serves {positions}: in longer texts less is "
                             "accepted, or nothing drafted", "serve no longer texts, or train it for them"))  # fmt: skip
    return found


def _of_padding(neutral: Neutral, facts: TargetFacts, rows: int) -> Finding:
    """A target's vocabulary may be padded beyond that which the drafter was trained with; the embedding tells."""
    config = neutral.config
    what = f"is {config.vocab_size}, the target has {rows}"
    if not config.vocab_size < rows <= config.vocab_size * _PADDED:
        return Finding("error", "any", "vocab_size", what, "it is another target's drafter")
    cut = facts.cut(config.vocab_size)
    if not config.own_embedding or cut.embedding is None:
        return Finding("unjudged", "any", "vocab_size", f"{what}: padding, or another target", "")
    apart = unlike_target(neutral, cut)
    if apart > LITTLE:
        return Finding("error", "any", "vocab_size", f"{what}, and another embedding", "it is another target's drafter")
    return Finding("warning", "any", "vocab_size", f"{what}, and the same embedding but for these rows: padding, which is never drafted",
                   "")  # fmt: skip


def _of_meaning(neutral: Neutral) -> list[Finding]:
    """What converts and is proved, and is still not known to be right."""
    found, config, ids = [], neutral.config, neutral.target_ids
    if rope.MROPE in config.rope.params:
        found.append(Finding("unjudged", "any", f"rope_parameters.{rope.MROPE}",
                             "the positions of images and video are not computed here; in text it is plain rope, and that "
                             "is judged", ""))  # fmt: skip
    in_part = quantised_in_part(neutral)
    if in_part:
        found.append(Finding("unjudged", "any", "quantization_config",
                             f"{in_part[0].removeprefix('fusion.')} is not quantised, and others are: whether an engine finds its name in the lists is "
                             "not judged here", ""))  # fmt: skip
    if (name := packed(neutral)) is not None:
        found.append(Finding("unjudged", "any", neutral.tensors[name].name,
                             "is packed below 8 bits, which is not computed here", ""))  # fmt: skip
    kind = layer_config(neutral.source.config, neutral.where).get("model_type")
    if isinstance(kind, str) and kind not in _KINDS:
        found.append(Finding("unjudged", "any", "model_type",
                             f"is {kind!r:.40}: what its config class makes of absent keys is not known here",
                             "an EAGLE-3 drafter's is llama or qwen3; eagle3-convert writes it"))  # fmt: skip
    masked = any(canonical_name(name) == "t2d" for name in neutral.source.tensors)
    if (
        ids is not None
        and config.draft_vocab_size < config.vocab_size
        and not masked
        and torch.equal(ids, torch.arange(len(ids)))
    ):
        found.append(Finding("unjudged", "any", "d2t",
                             f"is all zero: the first {len(ids)} of {config.vocab_size} tokens are drafted, and no t2d says "
                             "whether these are meant", "take d2t and t2d from the trainer's output"))  # fmt: skip
    return found


def _of_values(neutral: Neutral) -> list[Finding]:
    found = []
    for name, tensor in neutral.tensors.items():
        if tensor.dtype.itemsize == 1 or not tensor.nbytes:
            continue
        total = squares = 0.0
        whole, zero = True, True
        for stored in tensor.pieces():
            piece = stored.float()
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
