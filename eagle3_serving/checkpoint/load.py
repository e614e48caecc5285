"""A drafter directory -> a Drafter, strictly: nothing missing, nothing left over, nothing of the wrong shape."""

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from eagle3_serving.checkpoint.config import parse_config, read_json
from eagle3_serving.checkpoint.names import canonical_name
from eagle3_serving.drafter.model import Drafter
from eagle3_serving.errors import InputError


def load_drafter(
    directory: Path,
    *,
    target_embedding: Tensor | None = None,
    num_target_layers: int | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Drafter:
    """Load the EAGLE-3 drafter in `directory` (EAGLE, SGLang, vLLM or speculators names; safetensors).

    `target_embedding` [Vt, H] serves a drafter that ships without an embedding; `num_target_layers` decides the
    auxiliary layers where config.json is silent. Raises InputError naming the tensor or key that is not right.
    """
    raw = read_json(directory / "config.json")
    tensors = _read_tensors(directory)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    config = parse_config(raw, shapes, num_target_layers, directory)
    target_ids = _vocabulary_map(tensors, directory)
    if not config.own_embedding:
        if target_embedding is None:
            raise InputError(
                f"{directory}: tensor embed_tokens.weight is missing and no target was given to take it from"
            )
        tensors["embed_tokens.weight"] = target_embedding
    drafter = Drafter(config, target_ids)
    _check_tensors(tensors, {name: tuple(p.shape) for name, p in drafter.named_parameters()}, directory)
    drafter.load_state_dict({**tensors, "vocabulary.target_ids": drafter.vocabulary.target_ids}, strict=True)
    return drafter.to(device=device, dtype=dtype).eval().requires_grad_(False)


def _read_tensors(directory: Path) -> dict[str, Tensor]:
    """Every tensor under its canonical name. Index files must name plain files inside the directory."""
    index = directory / "model.safetensors.index.json"
    if index.exists():
        files = sorted(set(read_json(index).get("weight_map", {}).values()))
        for name in files:
            if Path(name).name != name:
                raise InputError(f"{index}: shard name {name!r} leaves the directory; refusing to follow it")
    else:
        files = ["model.safetensors"]
    tensors: dict[str, Tensor] = {}
    for name in files:
        path = directory / name
        if not path.exists():
            raise InputError(f"{path} is missing; a drafter directory holds config.json and model.safetensors")
        try:
            with safe_open(path, framework="pt") as file:
                for key in file.keys():  # noqa: SIM118 (safe_open is no mapping)
                    canonical = canonical_name(key)
                    if canonical in tensors:
                        raise InputError(f"{path}: tensor {key} appears twice (as {canonical})")
                    tensors[canonical] = file.get_tensor(key)
        except SafetensorError as error:
            raise InputError(f"{path} is not a readable safetensors file: {error}") from None
    return tensors


def _vocabulary_map(tensors: dict[str, Tensor], where: Path) -> Tensor | None:
    """Take `d2t` (offsets) and `t2d` out of the tensors; absolute target ids [Vd], or None for the identity."""
    d2t, t2d = tensors.pop("d2t", None), tensors.pop("t2d", None)
    if d2t is None:
        return None
    target_ids = torch.arange(len(d2t)) + d2t.long()
    if t2d is not None and not torch.equal(t2d.nonzero().flatten(), target_ids.sort().values):
        raise InputError(f"{where}: t2d and d2t do not name the same tokens; the vocabulary map is damaged")
    return target_ids


def _check_tensors(tensors: dict[str, Tensor], expected: dict[str, tuple[int, ...]], where: Path) -> None:
    missing, unexpected = sorted(expected.keys() - tensors.keys()), sorted(tensors.keys() - expected.keys())
    if missing:
        raise InputError(
            f"{where}: tensor {missing[0]} is missing ({len(missing)} in all); the checkpoint is incomplete"
        )
    if unexpected:
        raise InputError(
            f"{where}: unexpected tensor {unexpected[0]} ({len(unexpected)} in all); not a Llama EAGLE-3 drafter"
        )
    for name, shape in expected.items():
        if tuple(tensors[name].shape) != shape:
            raise InputError(
                f"{where}: tensor {name} has shape {tuple(tensors[name].shape)}, config.json implies {shape}"
            )
