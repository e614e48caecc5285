"""The neutral form: what a checkpoint means under the rules of the dialect that wrote it."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal, Protocol

import torch
from torch import Tensor

from eagle3_serving.checkpoint.aux_layers import AuxLayers
from eagle3_serving.checkpoint.findings import Finding
from eagle3_serving.checkpoint.names import canonical_name
from eagle3_serving.checkpoint.source import Json, Source, StoredTensor, zeros
from eagle3_serving.drafter.config import DrafterConfig
from eagle3_serving.drafter.shapes import parameter_shapes
from eagle3_serving.errors import CheckError, InputError, NotJudged

# Stored beside a weight that is quantised; they travel with it and are no parameters of the drafter's.
SCALES = (
    "weight_scale",
    "weight_scale_inv",
    "input_scale",
    "weight_scale_2",
    "k_scale",
    "v_scale",
    "weight_zero_point",
)
_SCALE = re.compile(rf"\.({'|'.join(SCALES)})$")
_BUFFERS = re.compile(r"rotary_emb\.|rotary_pos_emb\.|inv_freq$")
MAX_LAYERS = 64

Head = Literal["own", "target", "tied"]


class Meaning(Protocol):
    """What somebody computes with a checkpoint: a drafter's config, and where each of its parameters comes from."""

    @property
    def config(self) -> DrafterConfig: ...
    @property
    def tensors(self) -> dict[str, StoredTensor]: ...
    @property
    def target_ids(self) -> Tensor | None: ...
    @property
    def head(self) -> Head: ...
    @property
    def scales(self) -> dict[str, StoredTensor]: ...
    @property
    def mask_hidden(self) -> StoredTensor | None: ...


@dataclass(frozen=True)
class Neutral:
    """A drafter as its files mean it.

    `tensors` have the Drafter's own names; `target_ids` [Vd] int64 are absolute, None is the identity. `head` says
    whence the output head comes: `lm_head.weight` among the tensors, the target's, or the embedding. `findings` are what is not right with
    the checkpoint itself, whatever engine loads it.
    """

    dialect: str
    source: Source
    config: DrafterConfig
    aux: AuxLayers
    tensors: dict[str, StoredTensor]
    target_ids: Tensor | None
    scales: dict[str, StoredTensor]
    head: Head
    mask_hidden: StoredTensor | None = None
    mask_token_id: int | None = None
    verifier: Json = field(default_factory=dict)
    findings: tuple[Finding, ...] = ()

    @property
    def where(self) -> str:
        return str(self.source.directory)

    def require_right(self, error: type[CheckError] | type[InputError] = CheckError, depth: bool = True) -> None:
        """Raise `error` with the first finding that breaks the checkpoint or is not judged, or with what its ids leave open.

        Without `depth`, ids that follow from the depth of a target that is not known may stay open.
        """
        for finding in self.findings:
            if finding.breaks or finding.unjudged:
                raise error(f"{self.where}: {finding.line()}")
        if self.aux.boundaries is None and (depth or not self.aux.default):
            raise error(f"{self.where}: {self.aux.problem}; {self.aux.fix}")


def refuse_unknown_tensors(source: Source) -> None:
    """Raise CheckError, by name, for what looks like an EAGLE-3 drafter and is none."""
    raw, names, where = source.config, source.tensors.keys(), source.directory
    said = raw.get("architectures")
    architectures = " ".join(str(a)[:80] for a in said[:4]) if isinstance(said, list) and said else "no architecture"
    if any(".lora_" in name for name in names) or (where / "adapter_config.json").is_file():
        raise CheckError(f"{where}: a LoRA adapter, not a drafter; merge it into its base and export again")
    for kind, marks in (
        ("DFlash", ("DFlash", "dflash")),
        ("EAGLE-4", ("Eagle4", "EAGLE4")),
        ("MTP", ("MTP", "NextN")),
        ("Mistral-Large-3-eagle", ("EagleMistralLarge3",)),
    ):
        if any(mark in architectures for mark in marks) or raw.get("speculators_model_type") == kind.lower():
            raise CheckError(f"{where}: a {kind} draft ({architectures}), not an EAGLE-3 drafter")
    if any("kv_a_proj_with_mqa" in name for name in names):
        raise NotJudged(
            f"{where}: an MLA drafter ({architectures}); only Llama- and Qwen3-shaped ones are computed here"
        )
    if any(".experts." in name for name in names):
        raise NotJudged(f"{where}: a mixture-of-experts drafter; only dense ones are computed here")
    canonical = {canonical_name(name): name for name in names}
    fc = source.tensors.get(canonical.get("fusion.fc.weight", ""))
    if fc is None and "layers.0.hidden_norm.weight" not in canonical and _blocks(canonical) > 1:
        raise CheckError(
            f"{where}: a whole language model ({architectures}, {_blocks(canonical)} layers, no tensor fc.weight), not a "
            "drafter: give it as --target, and the drafter's folder here"
        )
    if fc is not None and fc.shape[-1:] == (2 * fc.shape[0],) and "layers.0.hidden_norm.weight" not in canonical:
        raise CheckError(f"{where}: fc reads 2 x hidden_size and there is no hidden_norm: an EAGLE-1/2 draft")


def _blocks(names: Iterable[str]) -> int:
    """How many numbered layers tensors of these names make."""
    return len({m[1] for name in names if (m := re.search(r"\.(\d{1,6})\.", name))})


@dataclass
class Parts:
    """The tensors of a checkpoint, sorted by what they are."""

    tensors: dict[str, StoredTensor] = field(default_factory=dict)
    scales: dict[str, StoredTensor] = field(default_factory=dict)
    d2t: StoredTensor | None = None
    t2d: StoredTensor | None = None
    mask_hidden: StoredTensor | None = None
    findings: list[Finding] = field(default_factory=list)


def sort_tensors(source: Source) -> Parts:
    """Every tensor under its canonical name; fused projections become parts of the stored ones, unread."""
    parts = Parts()
    for name, tensor in source.tensors.items():
        canonical = canonical_name(name)
        if canonical in ("d2t", "t2d", "mask_hidden"):
            setattr(parts, canonical, tensor)
        elif _BUFFERS.search(canonical):
            continue
        elif _SCALE.search(canonical):
            parts.scales[canonical] = tensor
        elif canonical in parts.tensors:
            # one norm under both engines' names serves both; two different tensors serve nobody
            if not _equal(parts.tensors[canonical], tensor):
                raise CheckError(
                    f"{source.directory}: tensors {parts.tensors[canonical].name} and {name} are both {canonical}, "
                    "and differ; remove the wrong one"
                )
        else:
            parts.tensors[canonical] = tensor
    return parts


def split_fused(parts: Parts, queries: int, keys: int, wide: int) -> None:
    """`qkv_proj` and `gate_up_proj` -> their rows, in place."""
    for name in list(parts.tensors):
        for fused, pieces in (
            ("qkv_proj", (("q_proj", queries), ("k_proj", keys), ("v_proj", keys))),
            ("gate_up_proj", (("gate_proj", wide), ("up_proj", wide))),
        ):
            if f".{fused}." not in name:
                continue
            tensor = parts.tensors[name]
            if tensor.num_rows != sum(rows for _, rows in pieces):
                continue  # left as it is, and reported as unexpected
            start = 0
            for piece, rows in pieces:
                parts.tensors[name.replace(fused, piece)] = tensor.part(start, start + rows)
                start += rows
            del parts.tensors[name]


def complete_biases(tensors: dict[str, StoredTensor], layers: int) -> None:
    """A checkpoint with q, k, v biases and none on o means zero there, and engines want it written; a zero one alone is none."""
    for i in range(layers):
        bias, weight = f"layers.{i}.self_attn.o_proj.bias", tensors.get(f"layers.{i}.self_attn.o_proj.weight")
        query = tensors.get(f"layers.{i}.self_attn.q_proj.bias")
        if query is None and bias in tensors and not tensors[bias].read().any():
            del tensors[bias]
        if query is not None and bias not in tensors and weight is not None and weight.shape:
            tensors[bias] = zeros(bias, query.dtype, (weight.shape[0],))


def absolute_ids(parts: Parts, vocab: int, draft_vocab: int) -> Tensor | None:
    """`d2t` -> absolute target ids [Vd]; what is not right with the map is added to the findings."""

    def wrong(what: str, fix: str) -> None:
        parts.findings.append(Finding("error", "any", "d2t", what, fix))

    d2t = parts.d2t
    if d2t is None:
        if draft_vocab != vocab:
            wrong(
                f"draft vocabulary has {draft_vocab} of {vocab} tokens but no map `d2t`; the checkpoint is incomplete",
                "take d2t from the trainer's output",
            )
        return None
    if d2t.dtype.is_floating_point or d2t.dtype == torch.bool or d2t.shape != (draft_vocab,):
        wrong(f"d2t is {d2t.dtype} {d2t.shape}, expected integers ({draft_vocab},) from draft_vocab_size", "")
        return None
    offsets = d2t.read().long()
    ids = torch.arange(draft_vocab) + offsets
    t2d = None
    if parts.t2d is not None:
        if parts.t2d.shape != (vocab,):
            parts.findings.append(
                Finding("error", "any", "t2d", f"t2d has shape {parts.t2d.shape}, expected ({vocab},)", "remove it")
            )
        else:
            t2d = (parts.t2d.read() != 0).nonzero().flatten()
    proper = _is_map(ids, vocab)
    if not proper or (t2d is not None and not torch.equal(t2d, ids.sort().values)):
        absolute = _is_map(offsets, vocab) and bool((offsets.diff() > 0).all())
        if absolute and (not proper or (t2d is not None and torch.equal(t2d, offsets))):
            parts.findings.append(
                Finding(
                    "warning",
                    "any",
                    "d2t",
                    "d2t holds absolute ids; every engine reads it as offsets (target = i + d2t[i])",
                    "eagle3-convert writes offsets",
                )
            )
            return offsets
        if proper:
            wrong("t2d and d2t do not name the same tokens; the vocabulary map is damaged", "take both from one export")
        else:
            wrong("d2t maps outside the target's vocabulary, or two draft tokens to one target token", "")
        return None
    if draft_vocab == vocab and torch.equal(ids, torch.arange(vocab)):
        return None
    return ids


def check_tensors(parts: Parts, config: DrafterConfig) -> None:
    """Nothing missing, nothing left over, nothing of the wrong shape; the embedding and the head may be the target's."""

    def wrong(name: str, what: str, fix: str) -> None:
        parts.findings.append(Finding("error", "any", _file_name(parts, name), what, fix))

    expected = parameter_shapes(config)
    for name in sorted(expected.keys() - parts.tensors.keys() - {"embed_tokens.weight", "lm_head.weight"}):
        wrong(name, f"tensor {name} is missing; the checkpoint is incomplete", "export it again")
    for name in sorted(parts.tensors.keys() - expected.keys()):
        wrong(name, f"unexpected tensor {name}; no part of a Llama or Qwen3 EAGLE-3 drafter", "remove it, or report it")
    packed = {name.rsplit(".", 1)[0] for name in parts.scales}
    for name, shape in expected.items():
        tensor = parts.tensors.get(name)
        if tensor is None or (tensor.dtype == torch.uint8 and name.rsplit(".", 1)[0] in packed):
            continue  # 4-bit weights are packed two a byte
        if tensor.shape != shape:
            wrong(
                name,
                f"tensor {name} has shape {tensor.shape}, config.json implies {shape}",
                f"mend {_keys(name)} in config.json",
            )
    for name, tensor in parts.tensors.items():
        narrow = tensor.dtype in (torch.float8_e4m3fn, torch.float8_e5m2, torch.int8, torch.uint8)
        if narrow and f"{name}_scale" not in parts.scales and f"{name}_scale_inv" not in parts.scales:
            wrong(name, f"{tensor.dtype} weight without its {name}_scale", "export the scales too")
        elif not narrow and not tensor.dtype.is_floating_point:
            wrong(name, f"{tensor.dtype} is no dtype of weights", "export it again")


def _keys(name: str) -> str:
    """The keys of config.json that give a tensor its shape."""
    for part, keys in (
        ("fc.", "target_hidden_size or hidden_size"),
        ("input_norm", "target_hidden_size"),
        ("fc_norm", "target_hidden_size"),
        ("lm_head", "draft_vocab_size or hidden_size"),
        ("embed_tokens", "vocab_size or hidden_size"),
        ("mlp.", "intermediate_size or hidden_size"),
        ("self_attn.", "num_attention_heads, num_key_value_heads or head_dim"),
    ):
        if part in name:
            return keys
    return "hidden_size"


def _file_name(parts: Parts, canonical: str) -> str:
    tensor = parts.tensors.get(canonical)
    return tensor.name if tensor is not None else canonical.removeprefix("fusion.")


def _is_map(ids: Tensor, vocab: int) -> bool:
    inside = bool(((ids >= 0) & (ids < vocab)).all())
    return inside and len(torch.unique(ids)) == len(ids)


def _equal(one: StoredTensor, other: StoredTensor) -> bool:
    return one.dtype == other.dtype and one.shape == other.shape and torch.equal(one.read(), other.read())
