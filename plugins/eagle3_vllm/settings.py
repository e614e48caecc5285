"""How the plugin is told what to do: environment variables, read once in each process.

vLLM's `--speculative-config` lets no unknown key through, so what vLLM itself does not ask for is said here:

| variable | default | meaning |
|---|---|---|
| `EAGLE3_MODE` | `auto` | `auto`: what is known to pay: on a GPU our drafter in vLLM's own chain, elsewhere trees where they can be verified. `tree`: trees. `chain`: our drafter, vLLM's own chain. `vllm`: the plugin does nothing |
| `EAGLE3_TREES` | none | the trees to choose from by load, as steps,top-k,tokens (the root included): `0;3,1,4;5,8,17`. `0` drafts nothing, a top-k of 1 is a chain. None has more tokens than `num_speculative_tokens` + 1 |
| `EAGLE3_TREE_DEPTH` | `8` | without `EAGLE3_TREES`: the deepest node of the one tree |
| `EAGLE3_TREE_TOP_K` | `10` | without `EAGLE3_TREES`: children of a node, and nodes drafted from at each depth |
| `EAGLE3_BATCH_NODES` | none | most nodes of all requests together a step: likelier drafts get more of them. Needs `--no-async-scheduling` |
| `EAGLE3_CALIBRATED` | `1` | rank nodes by the drafter's `calibration.json`, where it has one |
| `EAGLE3_PROPOSALS` | `coupled` | what is drafted for a request with a temperature: `coupled`, what the sampler may draw next, by the noise that it will draw with; `top`, the drafter's likeliest tokens, as at temperature 0. Answers are the same |
| `EAGLE3_ATTENTION` | `flash` | tree attention under FLASH_ATTN: `flash`, FlashAttention over the prefix and the tree's block merged in, or `split`, our one kernel over both, which other backends always take |
| `EAGLE3_DRAFTER_WEIGHTS` | `auto` | `fp8`: the drafter's linear layers in fp8, half the bytes to read a draft step; `auto`: in the engine's dtype. Answers are the target's either way; what is drafted loses a little |
| `EAGLE3_KERNELS` | by device | trees are drawn by Triton kernels (`1`, on a GPU) or by PyTorch's operations (`0`) |
| `EAGLE3_PROFILE` | none | a file that `eagle3 tune` writes: how many draft tokens pay at each batch size, none included |
| `EAGLE3_ASSUMED_GAINS` | none | for benchmarks of models without weights: accepted drafts a step by a tree's tokens, `4:1.9;17:3.4`, in the place of what is accepted |
| `EAGLE3_GATE_CONTEXT`, `_TEMPERATURE`, `_GRAMMAR`, `_ACCEPTED` | see there | requests for which nothing is drafted: `eagle3_serving.serve.gates` |
| `EAGLE3_FALLBACK_TOKENS` | `3` | draft tokens of a chain that serves in the place of a tree of more than 8 nodes |

`num_speculative_tokens` in `--speculative-config` is the number of nodes a request may have verified a step.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from eagle3_serving.errors import InputError
from eagle3_serving.serve.gates import Gates
from eagle3_serving.serve.shape import TREES, Shape, parse_trees

Mode = Literal["auto", "tree", "chain", "vllm"]


@dataclass(frozen=True)
class Settings:
    mode: Mode = "auto"
    trees: tuple[Shape, ...] = ()  # fewest tokens first; empty: one tree, of `num_speculative_tokens` nodes
    depth: int | None = None
    top_k: int = 10
    batch_nodes: int | None = None
    calibrated: bool = True
    profile: Path | None = None
    fallback_tokens: int = 3
    attention: Literal["flash", "split"] = "flash"
    kernels: Literal["", "0", "1"] = ""
    assumed_gains: tuple[tuple[int, float], ...] = ()
    drafter_weights: Literal["auto", "fp8"] = "auto"
    proposals: Literal["coupled", "top"] = "coupled"
    gates: Gates = field(default_factory=Gates)

    @classmethod
    def read(cls, environment: Mapping[str, str] | None = None) -> "Settings":
        """Raises InputError naming the variable that cannot be used."""
        said = os.environ if environment is None else environment
        mode = said.get("EAGLE3_MODE", "auto")
        if mode not in get_args(Mode):
            raise InputError(f"EAGLE3_MODE is {mode!r}: one of {', '.join(get_args(Mode))}")
        attention = said.get("EAGLE3_ATTENTION", cls.attention)
        if attention not in ("flash", "split"):
            raise InputError(f"EAGLE3_ATTENTION is {attention!r}: flash or split")
        kernels = said.get("EAGLE3_KERNELS", cls.kernels)
        if kernels not in ("", "0", "1"):
            raise InputError(f"EAGLE3_KERNELS is {kernels!r}: 0 or 1")
        weights = said.get("EAGLE3_DRAFTER_WEIGHTS", cls.drafter_weights)
        if weights not in ("auto", "fp8"):
            raise InputError(f"EAGLE3_DRAFTER_WEIGHTS is {weights!r}: auto or fp8")
        proposals = said.get("EAGLE3_PROPOSALS", cls.proposals)
        if proposals not in ("coupled", "top"):
            raise InputError(f"EAGLE3_PROPOSALS is {proposals!r}: coupled or top")
        profile = said.get("EAGLE3_PROFILE")
        if profile and not Path(profile).is_file():
            raise InputError(f"EAGLE3_PROFILE: no file {profile}; write it with python -m eagle3_vllm.profile")
        return cls(
            mode=mode,  # type: ignore[arg-type]
            trees=read_trees(said.get(TREES, "")),
            depth=_positive(said, "EAGLE3_TREE_DEPTH", 1) if "EAGLE3_TREE_DEPTH" in said else None,
            top_k=_positive(said, "EAGLE3_TREE_TOP_K", cls.top_k),
            batch_nodes=_positive(said, "EAGLE3_BATCH_NODES", 1) if "EAGLE3_BATCH_NODES" in said else None,
            calibrated=said.get("EAGLE3_CALIBRATED", "1") != "0",
            profile=Path(profile) if profile else None,
            fallback_tokens=_positive(said, "EAGLE3_FALLBACK_TOKENS", cls.fallback_tokens),
            attention=attention,  # type: ignore[arg-type]
            kernels=kernels,  # type: ignore[arg-type]
            assumed_gains=_gains(said.get("EAGLE3_ASSUMED_GAINS", "")),
            drafter_weights=weights,  # type: ignore[arg-type]
            proposals=proposals,  # type: ignore[arg-type]
            gates=Gates.read(said),
        )


def read_trees(text: str) -> tuple[Shape, ...]:
    """The trees of `EAGLE3_TREES`, fewest tokens first. Raises InputError naming a wrong one, or two of the same number of
    tokens: it is by that number that a pass knows its tree."""
    shapes = parse_trees(text)
    if len({shape.tokens for shape in shapes}) < len(shapes):
        raise InputError(f"{TREES}: two trees have the same number of tokens: {text!r}")
    return tuple(sorted(shapes, key=lambda shape: shape.tokens))


def _gains(text: str) -> tuple[tuple[int, float], ...]:
    try:
        pairs = [part.split(":") for part in text.split(";") if part.strip()]
        gains = tuple((int(tokens), float(gain)) for tokens, gain in pairs)
    except ValueError:
        gains = ((0, -1.0),)
    if not all(tokens > 1 and 0 <= gain < tokens for tokens, gain in gains):
        raise InputError(
            f"EAGLE3_ASSUMED_GAINS is {text!r}: tokens:gain pairs, as 4:1.9;17:3.4, no gain above its tokens"
        )
    return gains


def _positive(said: Mapping[str, str], name: str, default: int) -> int:
    value = said.get(name, str(default))
    if not value.isdecimal() or int(value) < 1:
        raise InputError(f"{name} is {value!r}: it must be a whole number of at least 1")
    return int(value)
