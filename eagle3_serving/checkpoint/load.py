"""A drafter directory -> a Drafter, strictly: nothing missing, nothing left over, nothing of the wrong shape."""

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from eagle3_serving.checkpoint.dequantize import dense_rows, packed
from eagle3_serving.checkpoint.neutral import Neutral
from eagle3_serving.checkpoint.read import read
from eagle3_serving.checkpoint.source import open_source
from eagle3_serving.drafter.model import Drafter
from eagle3_serving.errors import CheckError, InputError


def load_drafter(
    directory: Path,
    *,
    target_embedding: Tensor | None = None,
    target_head: Tensor | None = None,
    num_target_layers: int | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Drafter:
    """Load the EAGLE-3 drafter in `directory`, of any dialect.

    `target_embedding` and `target_head` [Vt, H] serve a drafter that ships without its own; `num_target_layers` decides
    the auxiliary layers where config.json is silent. Raises InputError naming the tensor or key that is not right.
    """
    try:
        neutral = read(open_source(directory), num_target_layers=num_target_layers)
    except CheckError as error:
        raise InputError(str(error)) from None
    neutral.require_right(InputError)
    if neutral.mask_hidden is not None and neutral.mask_token_id is None:
        raise InputError(f"{directory}: a parallel drafter (P-EAGLE) without mask_token_id in config.json; write the token that "
                         "stands for what is not drafted yet")  # fmt: skip
    if (name := packed(neutral)) is not None:
        raise InputError(f"{directory}: tensor {name} is packed below 8 bits, which is not read here")
    tensors = _shared(neutral, target_embedding, target_head)
    if neutral.mask_hidden is not None:
        tensors["mask_hidden"] = neutral.mask_hidden.read().flatten()
    config = replace(neutral.config, mask_token_id=None if neutral.mask_hidden is None else neutral.mask_token_id)
    drafter = Drafter(config, neutral.target_ids)
    for parameter_name, parameter in drafter.named_parameters():
        stored = neutral.tensors.get(parameter_name)
        if parameter_name in tensors:
            value = tensors[parameter_name]
        else:
            assert stored is not None
            value = dense_rows(neutral, parameter_name, 0, stored.num_rows)
        if value.shape != parameter.shape:
            raise InputError(
                f"{directory}: tensor {parameter_name} has shape {tuple(value.shape)}, config.json implies "
                f"{tuple(parameter.shape)}"
            )
        parameter.data.copy_(value)
    return drafter.to(device=device, dtype=dtype).eval().requires_grad_(False)


def _shared(neutral: Neutral, embedding: Tensor | None, head: Tensor | None) -> dict[str, Tensor]:
    """Embedding and head that are not the drafter's own."""
    tensors: dict[str, Tensor] = {}
    if not neutral.config.own_embedding:
        if embedding is None:
            raise InputError(
                f"{neutral.where}: tensor embed_tokens.weight is missing and no target was given to take it from"
            )
        tensors["embed_tokens.weight"] = embedding
    if neutral.head == "tied":
        own = neutral.tensors.get("embed_tokens.weight")
        tensors["lm_head.weight"] = tensors["embed_tokens.weight"] if own is None else own.read()
    elif neutral.head == "target":
        if head is None:
            raise InputError(
                f"{neutral.where}: tensor lm_head.weight is missing and no target was given to take it from"
            )
        tensors["lm_head.weight"] = head
    return tensors
