"""Does a drafter belong to a target: one clear line where it does not."""

from pathlib import Path
from typing import Any

import torch

from eagle3_serving.checkpoint.load import load_drafter
from eagle3_serving.checkpoint.source import read_json
from eagle3_serving.drafter import Drafter
from eagle3_serving.engine.target import Target
from eagle3_serving.errors import InputError


def load_for(target: Target, directory: Path) -> Drafter:
    """The drafter in `directory`, in the target's dtype and on its device. Raises InputError as `check_pair` does."""
    raw = read_json(directory / "config.json")
    layer: dict[str, Any] = {**raw, **(raw.get("transformer_layer_config") or {})}
    hidden = raw.get("target_hidden_size") or layer.get("hidden_size")
    # before loading: a target's embedding of another shape would be blamed on the drafter's tensors
    _check_sizes(str(directory), hidden, layer.get("vocab_size"), target)
    drafter = load_drafter(
        directory,
        target_embedding=target.embedding.detach(),
        target_head=target.model.get_output_embeddings().weight.detach(),
        num_target_layers=target.num_layers,
        dtype=target.dtype,
        device=target.device,
    )
    check_pair(drafter, target, str(directory))
    return drafter


def check_pair(drafter: Drafter, target: Target, name: str = "drafter") -> None:
    """Raise InputError where hidden size, vocabulary or number of layers tell that the drafter is for another target."""
    config = drafter.config
    _check_sizes(name, config.target_hidden_size, config.vocab_size, target)
    if max(config.aux_layers) > target.num_layers or min(config.aux_layers) < 0:
        _refuse(name, f"it reads the inputs of layers {list(config.aux_layers)}", f"{target.num_layers} layers", target)
    if drafter.dtype != target.dtype or drafter.vocabulary.target_ids.device != torch.device(target.device):
        raise InputError(f"{name}: the drafter is {drafter.dtype}, the target {target.dtype}: load both alike")


def _check_sizes(name: str, hidden: int | None, vocab: int | None, target: Target) -> None:
    if hidden is not None and int(hidden) != target.hidden_size:
        _refuse(name, f"it reads hidden size {hidden}", f"{target.hidden_size}", target)
    if vocab is not None and int(vocab) != target.vocab_size:
        _refuse(name, f"it knows a vocabulary of {vocab}", f"{target.vocab_size}", target)


def _refuse(name: str, drafter_has: str, target_has: str, target: Target) -> None:
    raise InputError(f"{name}: the drafter is for another target: {drafter_has}, {target.name} has {target_has}")
