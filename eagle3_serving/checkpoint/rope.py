"""Rotary embedding in config.json: three styles of keys, one meaning; a config in which they disagree is refused."""

from typing import Any

from eagle3_serving.drafter.config import RopeConfig

Json = dict[str, Any]
TYPES = ("default", "linear", "dynamic", "llama3", "yarn")
MROPE = "mrope_section"  # in rope_parameters of a drafter for images and video; in text its three position rows are one
_NOT_PARAMETERS = ("rope_type", "type", "rope_theta", "partial_rotary_factor")
_PARTIAL = ("partial_rotary_factor", "rotary_pct", "rotary_emb_fraction")
_KINDS = ("full_attention", "sliding_attention")  # of layers, by which Gemma's and others' rope_parameters are nested
_ORIGINAL = "original_max_position_embeddings"
# parameters that are computed here, or change nothing
_KNOWN = {"factor", "low_freq_factor", "high_freq_factor", _ORIGINAL, "beta_fast", "beta_slow", "mscale", "mscale_all_dim",
          "attention_factor", "truncate", "finetuned", MROPE, "mrope_interleaved"}  # fmt: skip
_REQUIRED = {
    "linear": ("factor",),
    "dynamic": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", _ORIGINAL),
    "yarn": ("factor", _ORIGINAL),
}


class RopeError(ValueError):
    """The keys disagree, or say what nobody computes; the message is one line."""


class UnknownRope(RopeError):
    """A rotary embedding that engines may know and that is not computed here."""


def decode(layer: Json, nested: bool = True) -> RopeConfig:
    """`rope_parameters` (transformers 5) or `rope_scaling` + `rope_theta` (before); RopeError where both disagree.

    `nested` False refuses parameters by kind of layer, as the engines' Llama classes do.
    """
    said: list[tuple[str, RopeConfig]] = []
    parameters, scaling, theta = (layer.get(k) for k in ("rope_parameters", "rope_scaling", "rope_theta"))
    for key, value in (("rope_parameters", parameters), ("rope_scaling", scaling)):
        if value is not None and not isinstance(value, dict):
            raise RopeError(f"{key} is no JSON object")
    if parameters and any(isinstance(v, dict) for v in parameters.values()):
        parameters = _of_layer(parameters, layer, nested)
    if parameters:
        said.append(("rope_parameters", _one(parameters, layer)))
    if scaling:
        said.append(("rope_scaling", _one(scaling, layer)))
    if not said:
        return RopeConfig(_number(theta, 10000.0, "rope_theta"), partial=_partial({}, layer))
    top = _number(theta, said[0][1].theta, "rope_theta")
    if parameters and "rope_theta" in parameters and top != said[0][1].theta:
        raise RopeError(f"rope_theta is {theta} at the top level and {said[0][1].theta} in rope_parameters")
    if len(said) == 2 and said[0][1] != said[1][1]:
        raise RopeError("rope_parameters and rope_scaling disagree")
    return said[0][1]


def by_kind(layer: Json) -> bool:
    """Whether `rope_parameters` holds one set a kind of layer, and these differ."""
    parameters = layer.get("rope_parameters")
    said = [parameters.get(kind) for kind in _KINDS if kind in parameters] if isinstance(parameters, dict) else []
    return len(said) > 1 and said[0] != said[1]


def _of_layer(parameters: Json, layer: Json, allowed: bool) -> Json:
    """The parameters of the drafter's own kind of layer: sliding where `layer_types` says so, else full attention."""
    strange = [key for key in parameters if key not in _KINDS]
    if strange:
        raise RopeError(f"rope_parameters holds {strange[0]!r:.40} beside parameters by kind of layer")
    if not allowed:
        raise RopeError("rope_parameters by kind of layer: a Llama class cannot be made of them")
    kinds = layer.get("layer_types")
    kind = kinds[0] if isinstance(kinds, list) and kinds and kinds[0] in _KINDS else "full_attention"
    found = parameters.get(kind)
    if not isinstance(found, dict):
        raise RopeError(f"rope_parameters says nothing of {kind}, which the drafter's layers are")
    return found


def _one(parameters: Json, layer: Json) -> RopeConfig:
    kind: Any = parameters.get("rope_type") or parameters.get("type") or "default"
    if not isinstance(kind, str):
        raise RopeError(f"rope type {kind!r:.40} is no text")
    if kind == "mrope" and MROPE in parameters:
        kind = "default"  # the older word: vLLM and SGLang both take it so
    if kind not in TYPES:
        raise UnknownRope(f"rope type {kind!r:.40} is not computed here; computed are {', '.join(TYPES)}")
    base = _number(parameters.get("rope_theta", layer.get("rope_theta")), 10000.0, "rope_theta")
    params = {k: v for k, v in parameters.items() if k not in _NOT_PARAMETERS}
    for key, value in params.items():
        if key not in _KNOWN and value is not None and value is not False:
            raise UnknownRope(f"rope parameter {key!r:.40} is not computed here")
    if kind in ("llama3", "yarn") and layer.get(_ORIGINAL) is not None:
        params[_ORIGINAL] = layer[_ORIGINAL]  # at the top level it has priority, in transformers and SGLang
    for name in _REQUIRED.get(kind, ()):
        if name not in params:
            raise RopeError(f"rope type {kind!r} lacks {name}")
        _number(params[name], 1.0, name)
    if MROPE in params and kind != "default":
        raise UnknownRope(f"rope type {kind!r} with {MROPE} is not computed here")
    known: Any = kind
    return RopeConfig(base, known, params, _partial(parameters, layer))


def _partial(parameters: Json, layer: Json) -> float:
    """The rotated part of a head: inside the parameters, else at the top level, under any of its names."""
    said = {key: layer[key] for key in _PARTIAL if layer.get(key) is not None}
    said |= {f"rope_parameters.{k}": parameters[k] for k in _PARTIAL[:1] if parameters.get(k) is not None}
    for key, value in said.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
            raise RopeError(f"{key} is {value!r:.40}: not a part of a head between 0 and 1")
    if len(set(said.values())) > 1:
        raise RopeError(f"{' and '.join(said)} disagree: {', '.join(map(str, said.values()))}")
    return float(next(iter(said.values()), 1.0))


def _number(value: Any, default: float, key: str) -> float:
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e18:
        raise RopeError(f"{key} is {value!r}: not a number that a rotary embedding has")
    return float(value)


def encode(rope: RopeConfig) -> Json:
    """All three styles, agreeing, so that old and new readers compute the same."""
    kind = {"rope_type": rope.type, **rope.params}
    partial = (
        {} if rope.partial == 1 else {"partial_rotary_factor": rope.partial}
    )  # vLLM reads it inside, SGLang outside
    return {
        "rope_theta": rope.theta,
        "rope_scaling": None if rope.type == "default" else kind,
        "rope_parameters": {"rope_theta": rope.theta, **kind, **partial},
        **partial,
    }
