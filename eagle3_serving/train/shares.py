"""A drafter in shares (FSDP2): each process of the group keeps a part of every trained weight, of its gradient, its average and
its optimiser state, and gathers one layer's weights at a time.

Whole tensors become shares and shares whole ones here alone; making whole is a collective, which all processes call.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from eagle3_serving.drafter import Drafter


def share(drafter: Drafter) -> None:
    """Put every layer that is trained into shares, in place; its parameters are new ones after."""
    for module in drafter.modules():
        if not any(parameter.requires_grad for parameter in module.parameters(recurse=False)):
            continue
        # each layer by itself: the drafter is not called as a module, but part by part
        fully_shard(module, reshard_after_forward=True)


def whole(value: Tensor) -> Tensor:
    """A tensor as it is outside of the group: a share gathered, any other as it is."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def shares_like(values: Sequence[Tensor], models: Sequence[Tensor]) -> list[Tensor]:
    """Whole `values`, alike on every process, as `models` of the same shapes are shared."""
    return [
        distribute_tensor(value, model.device_mesh, model.placements) if isinstance(model, DTensor) else value
        for value, model in zip(values, models, strict=True)
    ]


def whole_state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Its state as an optimiser of whole weights has it."""
    state: dict[str, Any] = optimizer.state_dict()
    moments = {
        n: {k: whole(v) if isinstance(v, Tensor) else v for k, v in of.items()} for n, of in state["state"].items()
    }
    return {**state, "state": moments}


def load_whole_state(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """What `whole_state` gave, into an optimiser of shares or of whole weights."""
    parameters: list[nn.Parameter] = [p for group in optimizer.param_groups for p in group["params"]]
    shared = {
        n: {k: shares_like([v], [parameters[n]])[0] if isinstance(v, Tensor) and v.dim() else v for k, v in of.items()}
        for n, of in state["state"].items()
    }
    optimizer.load_state_dict({**state, "state": shared})
