"""What the engines' own loaders left of a drafter, against what was made."""

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from drafters import Known
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

Loaded = dict[str, Any]
HERE = Path(__file__).resolve().parent


def tiny_target(folder: Path) -> Path:
    """A Llama of the size that tests/checkpoint/drafters.py draws for."""
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=12,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def load_all(python: str, script: str, target: Path, drafters: Sequence[Path], out: Path) -> list[Loaded]:
    """One process of the engine's environment loads one drafter after the other."""
    out.mkdir()
    done = subprocess.run(
        [python, str(HERE / script), str(target), str(out), *map(str, drafters)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [torch.load(out / f"{i}.pt", weights_only=True) for i in range(len(drafters))]


def expected(drafter: Known, later_norm: str) -> dict[str, Tensor]:
    """Parameters under the engines' names: q, k, v and gate, up are one each; `later_norm` is what layers >= 1 use."""
    found: dict[str, Tensor] = {}
    for name, tensor in drafter.tensors.items():
        name = name.removeprefix("fusion.")
        if not name.startswith("layers.0."):
            name = name.replace("hidden_norm", later_norm)
        for part, whole in (("q", "qkv"), ("k", "qkv"), ("v", "qkv"), ("gate", "gate_up"), ("up", "gate_up")):
            if f".{part}_proj." in name:
                whole_name = name.replace(f".{part}_proj.", f".{whole}_proj.")
                before = [found[whole_name]] if whole_name in found else []
                found[whole_name] = torch.cat([*before, tensor])
                break
        else:
            found[name] = tensor
    return {name if name == "lm_head.weight" else f"model.{name}": tensor for name, tensor in found.items()}


def differing(loaded: Loaded, drafter: Known, later_norm: str, cast: torch.dtype = torch.float32) -> list[str]:
    """Names of parameters that are not what was made; rows beyond a padded head are nobody's."""
    parameters = loaded["parameters"]
    wrong = []
    for name, tensor in expected(drafter, later_norm).items():
        if name not in parameters or not torch.equal(parameters[name][: len(tensor)].float(), tensor.to(cast).float()):
            wrong.append(name)
    return wrong
