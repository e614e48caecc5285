"""A source -> the neutral form, under the rules of the dialect that wrote it."""

import re
from typing import Any, Literal

from eagle3_serving.checkpoint import feedback, keys, rope
from eagle3_serving.checkpoint.aux_layers import KEY as IDS
from eagle3_serving.checkpoint.aux_layers import AuxLayers, Convention, decode, sglang_ids
from eagle3_serving.checkpoint.dialects import DIALECTS, recognise, specforge
from eagle3_serving.checkpoint.dialects.base import Dialect, provenance
from eagle3_serving.checkpoint.feedback import NormOutput
from eagle3_serving.checkpoint.findings import Finding
from eagle3_serving.checkpoint.names import CAUSAL
from eagle3_serving.checkpoint.neutral import (
    MAX_LAYERS,
    Head,
    Neutral,
    Parts,
    absolute_ids,
    check_tensors,
    complete_biases,
    refuse_unknown_tensors,
    sort_tensors,
    split_fused,
)
from eagle3_serving.checkpoint.source import Json, Source
from eagle3_serving.drafter.config import DrafterConfig, RopeConfig
from eagle3_serving.drafter.decoder import ACTIVATIONS
from eagle3_serving.drafter.rope import rotated_dimensions
from eagle3_serving.errors import CheckError, InputError, NotJudged

_MAX = 1 << 24  # more rows, columns or tokens than any drafter has
_LAYER = re.compile(r"layers\.(\d+)\.")


class _Keys:
    """Typed reading of config.json; what is wrong with a key is one line that names it."""

    def __init__(self, config: Json, where: str) -> None:
        self.config, self.where = config, where

    def count(self, key: str, default: int | None = None) -> int:
        value = self.config.get(key)
        if value is None and default is not None:
            return default
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= _MAX:
            raise InputError(f"{self.where}/config.json lacks a usable value for {key!r}: it is {value!r:.80}")
        return value

    def flag(self, key: str, default: bool = False) -> bool:
        value = self.config.get(key)
        if value is not None and not isinstance(value, bool):
            raise InputError(f"{self.where}/config.json: {key} is {value!r:.80}, not true or false")
        return default if value is None else value

    def ids(self, key: str) -> list[int] | None:
        value = self.config.get(key)
        if value is None:
            return None
        if not isinstance(value, list) or not all(type(i) is int and -1 <= i <= 10_000 for i in value):
            raise InputError(
                f"{self.where}/config.json: {key} is {value!r:.80}, not a list of whole numbers, one a layer"
            )
        return value

    def table(self, key: str) -> Json:
        value = self.config.get(key)
        if value is not None and not isinstance(value, dict):
            raise InputError(f"{self.where}/config.json: {key} is {value!r:.80}, not a JSON object")
        return value or {}


def layer_config(raw: Json, where: str) -> Json:
    """The keys of the decoder layer: at the top, or inside speculators' `transformer_layer_config`."""
    return {**raw, **_Keys(raw, where).table("transformer_layer_config")}


def read(
    source: Source,
    *,
    dialect: str | None = None,
    num_target_layers: int | None = None,
    aux_convention: Convention | None = None,
    norm_output: NormOutput | None = None,
) -> Neutral:
    """What the checkpoint means. `aux_convention` and `norm_output` answer what it leaves open.

    Raises InputError where config.json or a tensor cannot be read, CheckError where it is no EAGLE-3 drafter, NotJudged where
    it is one of a kind that is not computed here; what is merely not right stands in the `findings`.
    """
    if dialect is not None and dialect not in DIALECTS:
        raise InputError(f"there is no dialect {dialect!r}; known are {', '.join(DIALECTS)}")
    refuse_unknown_tensors(source)
    known = DIALECTS[dialect] if dialect is not None else recognise(source)
    where, raw = str(source.directory), source.config
    top, layer = _Keys(raw, where), _Keys(layer_config(raw, where), where)
    parts = sort_tensors(source)
    nested = _Keys(top.table("eagle_config"), where)
    if nested.flag("use_aux_hidden_state", top.flag("use_aux_hidden_state", True)) is False:
        raise NotJudged(
            f"{where}: eagle_config.use_aux_hidden_state is false: a head that reads the last hidden state alone, which is "
            "not computed here"
        )
    heads, hidden = layer.count("num_attention_heads"), layer.count("hidden_size")
    kv_heads = layer.count("num_key_value_heads", heads)
    head_dim = _head_dim(layer, parts, heads, kv_heads, hidden)
    wide, vocab = layer.count("intermediate_size"), layer.count("vocab_size")
    if heads % kv_heads or head_dim % 2:
        raise InputError(
            f"{where}/config.json: num_attention_heads {heads}, num_key_value_heads {kv_heads} and head_dim {head_dim} make no "
            "attention"
        )
    layers = _num_layers(parts, where)
    split_fused(parts, heads * head_dim, kv_heads * head_dim, wide)
    complete_biases(parts.tensors, layers)
    fc = parts.tensors.get("fusion.fc.weight")
    if fc is None or len(fc.shape) != 2:
        raise CheckError(f"{where}: tensor fc.weight is missing; this is not a complete EAGLE-3 drafter")
    target_hidden = top.count("target_hidden_size", layer.count("target_hidden_size", hidden))
    packed = 2 if fc.dtype.itemsize == 1 and fc.name + "_scale_2" in source.tensors else 1  # 4 bits, two a byte
    fc_in = fc.shape[1] * packed
    if fc_in % target_hidden or not fc_in:
        raise CheckError(
            f"{where}: fc.weight reads {fc_in} features, which is no multiple of target hidden size {target_hidden}"
        )
    top_ids, nested_ids = top.ids(IDS) or layer.ids(IDS), nested.ids(IDS)
    count = fc_in // target_hidden
    aux = _noted(source, top_ids, nested_ids, count) if aux_convention is None else None
    if aux is None:
        aux = decode(top_ids, nested_ids, count, num_target_layers, aux_convention or known.rules.nested_ids)
    boundaries = aux.boundaries or (-1,) * count
    if known.rules.layer_order and aux.boundaries:
        boundaries = tuple(sorted(aux.boundaries))
    draft_vocab = _draft_vocabulary(layer, top, parts, vocab)
    head = _head(parts, layer, draft_vocab, vocab)
    tensors = parts.tensors
    config = DrafterConfig(
        hidden_size=hidden,
        intermediate_size=wide,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        vocab_size=vocab,
        draft_vocab_size=draft_vocab,
        target_hidden_size=target_hidden,
        aux_layers=boundaries,
        num_layers=layers,
        rms_norm_eps=_epsilon(layer),
        max_position_embeddings=layer.count("max_position_embeddings", 2048),
        hidden_act=_activation(parts, layer),
        rope=_rope(parts, layer.config, head_dim),
        norm_before_residual=top.flag("norm_before_residual"),
        pre_fc_norm=_pre_norm(parts, top, nested),
        norm_output=_feedback(known, parts, top, source, dialect is not None, norm_output),
        qk_norm="layers.0.self_attn.q_norm.weight" in tensors,
        sliding_window=_window(parts, layer, layers),
        fc_bias="fusion.fc.bias" in tensors,
        attention_bias="layers.0.self_attn.q_proj.bias" in tensors,
        mlp_bias="layers.0.mlp.gate_proj.bias" in tensors,
        own_embedding="embed_tokens.weight" in tensors,
        causal_head=parts.mask_hidden is not None and CAUSAL in tensors,
    )
    target_ids = absolute_ids(parts, vocab, draft_vocab)
    check_tensors(parts, config)
    _check_ids(parts, aux.boundaries, num_target_layers)
    trained_elsewhere = known.rules.trains_at_base_10000 and not provenance(source)
    _check_config(parts, layer, layers, trained_elsewhere, config)
    parts.findings += keys.judge(layer.config) + keys.judge(nested.config, "eagle_config.")
    mask_tokens = [layer.config.get(key) for key in ("mask_token_id", "pard_token", "ptd_token_id")]
    return Neutral(
        dialect=known.name,
        source=source,
        config=config,
        aux=aux,
        tensors=tensors,
        target_ids=target_ids,
        scales=parts.scales,
        head=head,
        mask_hidden=parts.mask_hidden,
        mask_token_id=next((token for token in mask_tokens if type(token) is int), None),
        verifier=_verifier(source),
        findings=tuple(parts.findings),
    )


def _head_dim(layer: _Keys, parts: Parts, heads: int, kv_heads: int, hidden: int) -> int:
    """As config.json has it, else hidden_size / heads. Raises CheckError where the projections have heads of another size."""
    said = layer.count("head_dim", max(hidden // heads, 1))
    for name, count in (("q_proj", heads), ("qkv_proj", heads + 2 * kv_heads)):
        tensor = parts.tensors.get(f"layers.0.self_attn.{name}.weight")
        if tensor is None or len(tensor.shape) != 2 or tensor.shape[0] % count:
            continue
        stored = tensor.shape[0] // count
        key = parts.tensors.get("layers.0.self_attn.k_proj.weight")
        if stored not in (0, said) and (key is None or key.shape[:1] == (kv_heads * stored,)):
            how = (
                "is" if layer.config.get("head_dim") is not None else "is missing, hidden_size / num_attention_heads is"
            )
            raise CheckError(
                f"{layer.where}/config.json: head_dim {how} {said}, and {tensor.name} has {count} heads of {stored}; set head_dim "
                f"to {stored}"
            )
    return said


def _noted(source: Source, top: list[int] | None, nested: list[int] | None, count: int) -> AuxLayers | None:
    """What our conversion noted, as long as the ids beside it still say the same."""
    note = _Keys(dict(provenance(source)), str(source.directory))
    boundaries = note.ids("aux_boundaries")
    if boundaries is None or len(boundaries) != count or min(boundaries) < 0:
        return None
    if top:
        return AuxLayers(tuple(top), "boundary", "as its conversion noted") if top == boundaries else None
    depth, kind = note.config.get("num_target_layers"), note.config.get("target_type")
    encoded = sglang_ids(boundaries, depth if type(depth) is int else None, kind if isinstance(kind, str) else None)
    if nested is not None and nested != encoded:
        return None
    return AuxLayers(
        tuple(boundaries), "output" if nested else "boundary", "as its conversion noted", default=not nested
    )


def _num_layers(parts: Parts, where: str) -> int:
    """From the tensors: configs are known to be wrong about it."""
    numbers = {int(m[1]) for name in parts.tensors if (m := _LAYER.match(name)) and len(m[1]) < 6}
    layers = 1 + max(numbers, default=0)
    if layers > MAX_LAYERS:
        raise CheckError(f"{where}: {layers} decoder layers: more than {MAX_LAYERS}, and no drafter")
    return layers


def _draft_vocabulary(layer: _Keys, top: _Keys, parts: Parts, vocab: int) -> int:
    head = parts.tensors.get("lm_head.weight")
    found = parts.d2t.num_rows if parts.d2t is not None else head.num_rows if head is not None else vocab
    return top.count("draft_vocab_size", layer.count("draft_vocab_size", min(max(found, 1), _MAX)))


def _head(parts: Parts, layer: _Keys, draft_vocab: int, vocab: int) -> Head:
    tied = layer.flag("tie_word_embeddings")
    if "lm_head.weight" in parts.tensors:
        if tied and draft_vocab == vocab and "embed_tokens.weight" in parts.tensors:
            _say(parts, "warning", "tie_word_embeddings", "is true, and lm_head.weight is stored; the stored one is meant",
                 "set it to false")  # fmt: skip
        return "own"
    if draft_vocab != vocab:
        _say(parts, "error", "lm_head.weight",
             f"tensor lm_head.weight is missing and {draft_vocab} of {vocab} tokens are drafted: no other head fits",
             "export it again")  # fmt: skip
        return "own"
    return "tied" if tied else "target"


def _epsilon(layer: _Keys) -> float:
    value = layer.config.get("rms_norm_eps", 1e-6)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
        raise InputError(f"{layer.where}/config.json: rms_norm_eps is {value!r:.80}")
    return float(value)


def _activation(parts: Parts, layer: _Keys) -> str:
    said = [layer.config[key] for key in ("hidden_act", "hidden_activation") if layer.config.get(key)]
    value = said[0] if said else "silu"
    if len(said) == 2 and said[0] != said[1]:
        _say(parts, "unjudged", "hidden_activation",
             f"is {said[1]!r:.40}, and hidden_act is {said[0]!r:.40}: which of them it was trained with is not known",
             "leave that one alone")  # fmt: skip
    if not isinstance(value, str) or value not in ACTIVATIONS:
        raise InputError(
            f"{layer.where}/config.json: hidden_act {value!r:.80} is not supported; known are {', '.join(ACTIVATIONS)}"
        )
    return value


def _window(parts: Parts, layer: _Keys, layers: int) -> int | None:
    """The window of sliding layers. Transformers' Llama has a window only where `layer_types` says so. Raises CheckError
    where some layers slide and others do not."""
    kinds, width = layer.config.get("layer_types"), layer.config.get("sliding_window")
    if kinds is None and width is not None and _slides(layer.config, layers):
        _say(parts, "unjudged", "sliding_window",
             f"is {width!r:.20} of model_type {layer.config.get('model_type')!r:.20}, and no layer_types says which layers slide",
             "write layer_types")  # fmt: skip
    if not isinstance(kinds, list) or "sliding_attention" not in kinds[:layers]:
        return None
    if set(kinds[:layers]) != {"sliding_attention"} or len(kinds) < layers:
        raise CheckError(
            f"{layer.where}/config.json: layer_types {kinds!r:.80}: layers of one kind alone are supported"
        )
    return layer.count("sliding_window")


def _slides(config: Json, layers: int) -> bool:
    """Whether the class of the config makes layers slide by itself: Mistral's all, Qwen's from max_window_layers on."""
    first = config.get("max_window_layers", 28)
    qwen = config.get("model_type") in ("qwen2", "qwen3") and config.get("use_sliding_window") is True
    return config.get("model_type") == "mistral" or (qwen and type(first) is int and first < layers)


def _rope(parts: Parts, config: Json, head_dim: int) -> RopeConfig:
    try:
        found = rope.decode(config)
        if rotated_dimensions(found, head_dim) % 2 or not rotated_dimensions(found, head_dim):
            raise rope.RopeError(f"partial_rotary_factor {found.partial:g} of head size {head_dim} is no even number")
        if rope.by_kind(config) and not config.get("layer_types"):
            _say(parts, "warning", "rope_parameters", "differ by kind of layer, and no layer_types says which the drafter's is: "
                 f"taken for full attention (base {found.theta:g})", "write the drafter's own alone")  # fmt: skip
        return found
    except rope.UnknownRope as error:
        _say(parts, "unjudged", "rope_parameters", str(error), "")
        return RopeConfig()
    except rope.RopeError as error:
        _say(
            parts,
            "error",
            "rope_parameters",
            str(error),
            "leave one style of keys, the one that the drafter was trained with",
        )
        return RopeConfig()


def _pre_norm(parts: Parts, top: _Keys, nested: _Keys) -> Literal["none", "concat", "per_aux", "both"]:
    """What the tensors say; flags that say otherwise are named."""
    concat = "fusion.input_norm.weight" in parts.tensors
    per_aux = any(name.startswith("fusion.fc_norm.") for name in parts.tensors)
    for present, tensor, flagged, flag in (
        (concat, "input_norm.weight", nested.flag("norm_before_fc", top.flag("norm_before_fc")), "norm_before_fc"),
        (per_aux, "fc_norm.0.weight", bool(top.config.get("fc_norm") or top.config.get("use_aux_norm")), "fc_norm"),
    ):
        if flagged and not present:
            _say(parts, "error", tensor, f"{flag} is true, and tensor {tensor} is missing", "export it again")
        elif present and not flagged:
            _say(parts, "warning", flag, f"{tensor} is stored, and {flag} is not true", f"set {flag}: true, or convert")
    if concat and per_aux:
        return "both"
    return "concat" if concat else "per_aux" if per_aux else "none"


def _feedback(
    known: Dialect, parts: Parts, top: _Keys, source: Source, chosen: bool, answer: NormOutput | None
) -> bool:
    ours = known.name == "universal" or bool(provenance(source))
    certain = known.rules.norm_output == "feedback" and (chosen or ours or not specforge.marked(source))
    said = top.flag(feedback.KEY) if top.config.get(feedback.KEY) is not None else None
    fc_norm = any(name.startswith("fusion.fc_norm.") for name in parts.tensors)
    value, found = feedback.post_norm_feedback(top.config, said, certain, fc_norm, answer)
    parts.findings += found
    return value


def _check_ids(parts: Parts, boundaries: tuple[int, ...] | None, num_target_layers: int | None) -> None:
    if boundaries is None:
        return
    n = num_target_layers
    if any(k < 0 for k in boundaries):
        last = f" ({n} is the state behind its last layer)" if n is not None else ""
        _say(parts, "error", IDS, f"{list(boundaries)}: a negative number counts from the end, and engines do not count so",
             f"write the layer's own number{last}")  # fmt: skip
        return
    outside = [k for k in boundaries if (num_target_layers is not None and k > num_target_layers)]
    if outside:
        what = f"the drafter is for another target: it reads the inputs of layers {list(boundaries)}, this one has {n} layers"
        _say(parts, "error", IDS, what, "give the target that it was trained on")
    if len(set(boundaries)) != len(boundaries):
        _say(parts, "error", IDS, f"boundaries {list(boundaries)} name one twice", "mend config.json")


def _check_config(parts: Parts, layer: _Keys, layers: int, ignores_theta: bool, config: DrafterConfig) -> None:
    said = layer.config.get("num_hidden_layers")
    if said is not None and said != layers:
        _say(parts, "warning", "num_hidden_layers", f"is {said!r:.20}, and there are tensors of {layers} layers",
             f"set it to {layers}, or convert")  # fmt: skip
    if ignores_theta and config.rope.theta != 10000.0:
        _say(parts, "warning", "rope_theta",
             f"is {config.rope.theta:g}; this trainer is known to ignore it and to train at 10000",
             "if acceptance is low, try 10000")  # fmt: skip


def _verifier(source: Source) -> Json:
    """speculators names the target; a conversion in between has noted it."""
    settings = source.config.get("speculators_config")
    found = settings.get("verifier") if isinstance(settings, dict) else provenance(source).get("verifier")
    return found if isinstance(found, dict) else {}


def _say(parts: Parts, severity: Any, where: str, what: str, fix: str) -> None:
    parts.findings.append(Finding(severity, "any", where, what, fix))
