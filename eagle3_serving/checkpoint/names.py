"""Tensor names: every dialect's spelling -> the Drafter's own, and back to the one both engines read."""

import re

_ALIASES = {"aux_norm_low": "fc_norm.0", "aux_norm_mid": "fc_norm.1", "aux_norm_high": "fc_norm.2"}


def canonical_name(name: str) -> str:
    """The Drafter's name of a checkpoint tensor (`midlayer.`, `model.` and norm aliases undone)."""
    name = name.removeprefix("model.")
    if name.startswith("midlayer.") and not re.match(r"midlayer\.\d+\.", name):
        name = "layers.0." + name.removeprefix("midlayer.")
    elif name.startswith("midlayer."):
        name = "layers." + name.removeprefix("midlayer.")
    head, _, rest = name.partition(".")
    if head in _ALIASES:
        name = f"{_ALIASES[head]}.{rest}"
    if name.startswith(("fc.", "input_norm.", "fc_norm.")):
        name = f"fusion.{name}"
    # vLLM and speculators call the only norm of layers >= 1 input_layernorm
    return re.sub(r"^layers\.([1-9]\d*)\.input_layernorm\.", r"layers.\1.hidden_norm.", name)


def saved_name(name: str) -> str:
    """The name under which a Drafter tensor is saved: EAGLE's, which EAGLE, vLLM and SGLang all load."""
    return re.sub(r"^layers\.0\.", "midlayer.", name.removeprefix("fusion."))
