"""Rotary embedding in config.json: three styles of keys, one meaning; a config in which they disagree is refused."""

from typing import Any

from eagle3_serving.drafter.config import RopeConfig

Json = dict[str, Any]
TYPES = ("default", "linear", "dynamic", "llama3", "yarn")
_NOT_PARAMETERS = ("rope_type", "type", "rope_theta")
_REQUIRED = {
    "linear": ("factor",),
    "dynamic": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "yarn": ("factor", "original_max_position_embeddings"),
}


class RopeError(ValueError):
    """The keys disagree, or say what nobody computes; the message is one line."""


def decode(layer: Json) -> RopeConfig:
    """`rope_parameters` (transformers 5) or `rope_scaling` + `rope_theta` (before); RopeError where both disagree."""
    said: list[tuple[str, RopeConfig]] = []
    parameters, scaling, theta = (layer.get(k) for k in ("rope_parameters", "rope_scaling", "rope_theta"))
    for key, value in (("rope_parameters", parameters), ("rope_scaling", scaling)):
        if value is not None and not isinstance(value, dict):
            raise RopeError(f"{key} is no JSON object")
    if parameters:
        said.append(("rope_parameters", _one(parameters, theta)))
    if scaling:
        said.append(("rope_scaling", _one(scaling, theta)))
    if not said:
        return RopeConfig(_number(theta, 10000.0, "rope_theta"))
    top = _number(theta, said[0][1].theta, "rope_theta")
    if parameters and "rope_theta" in parameters and top != said[0][1].theta:
        raise RopeError(f"rope_theta is {theta} at the top level and {said[0][1].theta} in rope_parameters")
    if len(said) == 2 and said[0][1] != said[1][1]:
        raise RopeError("rope_parameters and rope_scaling disagree")
    return said[0][1]


def _one(parameters: Json, theta: Any) -> RopeConfig:
    kind: Any = parameters.get("rope_type") or parameters.get("type") or "default"
    if kind not in TYPES or not isinstance(kind, str):
        raise RopeError(f"rope type {kind!r} is not supported; known are {', '.join(TYPES)}")
    base = _number(parameters.get("rope_theta", theta), 10000.0, "rope_theta")
    params = {k: v for k, v in parameters.items() if k not in _NOT_PARAMETERS}
    for name in _REQUIRED.get(kind, ()):
        if name not in params:
            raise RopeError(f"rope type {kind!r} lacks {name}")
        _number(params[name], 1.0, name)
    known: Any = kind
    return RopeConfig(base, known, params)


def _number(value: Any, default: float, key: str) -> float:
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e18:
        raise RopeError(f"{key} is {value!r}: not a number that a rotary embedding has")
    return float(value)


def encode(rope: RopeConfig) -> Json:
    """All three styles, agreeing, so that old and new readers compute the same."""
    kind = {"rope_type": rope.type, **rope.params}
    return {
        "rope_theta": rope.theta,
        "rope_scaling": None if rope.type == "default" else kind,
        "rope_parameters": {"rope_theta": rope.theta, **kind},
    }
