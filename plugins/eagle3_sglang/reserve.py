"""One memory reserve for the states of all trees: what a state's graphs are planned into is planned anew before each of its
steps, and one state steps at a time, so that the next state may have the same memory for it.

What is small, and may hold what was written once for good, is every state's own.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

LEAST_BYTES = 1 << 20  # of a tensor that is shared: indices of cache slots, masks, page tables
_MADE = {torch.zeros, torch.full, torch.empty, torch.ones}


class Reserve:
    """Blocks of device memory, each handed to at most one tensor of a state."""

    def __init__(self, seeds: Iterable[Tensor] = ()) -> None:
        """`seeds`: large tensors of a state that stands already."""
        self._blocks = [_bytes(seed) for seed in seeds if seed.nbytes >= LEAST_BYTES and seed.is_contiguous()]
        self._free: list[int] = []
        self.saved = 0  # bytes not allocated

    @contextmanager
    def state(self) -> Iterator[None]:
        """Of one state: all blocks are free at its begin."""
        self._free = list(range(len(self._blocks)))
        yield

    @contextmanager
    def allocating(self) -> Iterator[None]:
        """Inside, large tensors that are made lie in the reserve."""
        with _Allocating(self):
            yield

    def take(self, count: int, device: torch.device) -> Tensor:
        """uint8 [count], in the smallest block that holds it, or in a new one."""
        fits = [
            place
            for place in self._free
            if self._blocks[place].numel() >= count and self._blocks[place].device == device
        ]
        if not fits:
            self._blocks.append(torch.empty(count, dtype=torch.uint8, device=device))
            return self._blocks[-1]
        place = min(fits, key=lambda place: self._blocks[place].numel())
        self._free.remove(place)
        self.saved += count
        return self._blocks[place][:count]


class _Allocating(TorchFunctionMode):
    def __init__(self, reserve: Reserve) -> None:
        super().__init__()
        self.reserve = reserve

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func not in _MADE or kwargs.get("out") is not None:
            return func(*args, **kwargs)
        like = func(*args, **{**kwargs, "device": "meta", "pin_memory": False})
        if like.nbytes < LEAST_BYTES:
            return func(*args, **kwargs)
        device = torch.empty(0, device=kwargs.get("device")).device
        made = self.reserve.take(like.nbytes, device).view(like.dtype).view(like.shape)
        if func is torch.full:
            made.fill_(kwargs["fill_value"] if "fill_value" in kwargs else args[1])
        elif func is not torch.empty:
            made.fill_(func is torch.ones)
        return made


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.detach().view(-1).view(torch.uint8)
