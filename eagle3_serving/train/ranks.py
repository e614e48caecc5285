"""Training by several processes under torchrun: each takes its own batches, gradients are averaged by rows."""

import os
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch import distributed as dist


@dataclass(frozen=True)
class Ranks:
    """This process's `rank` of `size`; without torchrun the only one, and nothing is communicated."""

    rank: int = 0
    size: int = 1

    @classmethod
    def here(cls, device: torch.device) -> "Ranks":
        """By torchrun's environment; joins the group at the first call."""
        size = int(os.environ.get("WORLD_SIZE", "1"))
        if size == 1:
            return cls()
        if not dist.is_initialized():
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        return cls(dist.get_rank(), size)

    @property
    def first(self) -> bool:
        """Whether this one writes files and speaks."""
        return self.rank == 0

    def sum(self, values: list[float], device: torch.device) -> list[float]:
        """Each value summed over the ranks."""
        if self.size == 1:
            return values
        summed = torch.tensor(values, dtype=torch.float64, device=device)
        dist.all_reduce(summed)
        return summed.tolist()

    def average_gradients(self, parameters: Iterable[Tensor], share: float) -> None:
        """Gradients become their sum over the ranks, each weighted by its `share` of the rows, in place."""
        if self.size == 1:
            return
        parameters = list(parameters)
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        flat = torch.cat([gradient.flatten() for gradient in gradients]) * share
        dist.all_reduce(flat)
        at = 0
        for parameter in parameters:
            parameter.grad = flat[at : at + parameter.numel()].view_as(parameter)
            at += parameter.numel()

    def copy_from_first(self, tensors: Iterable[Tensor]) -> None:
        """The first rank's values become everyone's, in place."""
        for tensor in tensors if self.size > 1 else ():
            dist.broadcast(tensor.data, 0)

    def wait(self) -> None:
        """Until every rank is here."""
        if self.size > 1:
            dist.barrier()
