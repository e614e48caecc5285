"""Tensor names: every dialect's spelling -> the Drafter's own, and back."""

import re

CAUSAL = "causal.proj.weight"  # a drafter with this tensor has a causal head
_ALIASES = {"aux_norm_low": "fc_norm.0", "aux_norm_mid": "fc_norm.1", "aux_norm_high": "fc_norm.2"}
# DataParallel's and DDP's, torch.compile's, transformers' own
_WRAPPERS = re.compile(r"^(?:module\.|_orig_mod\.|model\.)+")
_LATER_NORM = re.compile(r"^layers\.([1-9]\d*)\.(input_layernorm|hidden_norm)\.")


def wrapper(name: str) -> str:
    """What wrappers (module., _orig_mod.) put before a tensor's name, with what follows of `model.`; empty without one."""
    found = _WRAPPERS.match(name)
    return found.group() if found and found.group().replace("model.", "") else ""


def canonical_name(name: str) -> str:
    """The Drafter's name of a checkpoint tensor (`midlayer.`, wrappers' prefixes and norm aliases undone)."""
    name = _WRAPPERS.sub("", name)
    if name.startswith("midlayer.") and not re.match(r"midlayer\.\d+\.", name):
        name = "layers.0." + name.removeprefix("midlayer.")
    elif name.startswith("midlayer."):
        name = "layers." + name.removeprefix("midlayer.")
    head, _, rest = name.partition(".")
    if head in _ALIASES:
        name = f"{_ALIASES[head]}.{rest}"
    name = re.sub(r"^fcs\.(\d+)\.", r"fc_norm.\1.", name)
    if name.startswith(("fc.", "input_norm.", "fc_norm.")):
        name = f"fusion.{name}"
    # vLLM and speculators call the only norm of layers >= 1 input_layernorm
    return _LATER_NORM.sub(r"layers.\1.hidden_norm.", name)


def eagle_name(name: str) -> str:
    """EAGLE's spelling of a Drafter tensor, which EAGLE, SpecForge, vLLM and SGLang all load (one layer)."""
    return re.sub(r"^layers\.0\.", "midlayer.", name.removeprefix("fusion."))


def sglang_name(name: str) -> str:
    """SGLang's: layers counted, the first norm of later layers `hidden_norm`."""
    return name.removeprefix("fusion.")


def vllm_name(name: str) -> str:
    """vLLM's and speculators': layers counted, the first norm of later layers `input_layernorm`."""
    return _LATER_NORM.sub(r"layers.\1.input_layernorm.", name.removeprefix("fusion."))
