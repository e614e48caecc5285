"""A second device on a machine that has none: tensors that say they lie on it, computed on the CPU.

An operation that mixes them with a CPU tensor of one dimension or more is an error, as on CUDA (an index may be on the
CPU there, and is here). What crosses is counted: reads make the host wait, uploads cost a copy each, and wait too where
they do not say `non_blocking`.

`capture` is what a CUDA graph is: inside it a crossing, or a result whose size hangs on data, is an error at its own line;
`replay` then runs the captured operations again on the very tensors of the capture, and no Python between them.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

NAME = "pretend"
_INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}
# their results' sizes hang on values, which the host must know
_BY_DATA = {"nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "bincount"}
_UNWRITTEN = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}
_CROSSING = {"copy_", "_to_copy", "_copy_from", "index", "index_put", "index_put_", "_index_put_impl_", "_pin_memory"}
_real_tensor = torch.tensor
_ready = False


class Crossings:
    """How often the host read from the device, wrote to it, and waited for it while it did either."""

    reads = 0
    uploads = 0
    waits = 0


class Event:
    """The device's events, on a clock of its own: what is queued takes the milliseconds a test says it does (`queue`), and
    is done once the test, or a host that waits, lets it (`run`)."""

    queued = 0.0
    done = 0.0

    def __init__(self, enable_timing: bool = False) -> None:
        self.at = float("inf")

    @classmethod
    def queue(cls, milliseconds: float) -> None:
        cls.queued += milliseconds

    @classmethod
    def run(cls) -> None:
        cls.done = cls.queued

    def record(self) -> None:
        self.at = self.queued

    def query(self) -> bool:
        return self.at <= self.done

    def synchronize(self) -> None:
        Crossings.waits += 1
        self.run()

    def elapsed_time(self, end: "Event") -> float:
        assert self.query() and end.query(), "an event that the device has not reached"
        return end.at - self.at


class CaptureError(AssertionError):
    """What CUDA's capture of a graph would refuse."""


class Graph:
    """The operations of a capture, each with the tensors it read and wrote."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, Any, Any, Any]] = []

    def replay(self) -> None:
        for func, args, kwargs, outputs in self.calls:
            again = func(*args, **kwargs)
            for old, new in zip(tree_leaves(outputs), tree_leaves(again), strict=True):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    assert old.shape == new.shape, f"{func} gave {new.shape} where it gave {old.shape} when captured"
                    old.copy_(new)


_capturing: list[Graph] = []


@contextmanager
def capture() -> Iterator[Graph]:
    """Inside `pretend_device`: the graph of what is computed on the device until the end."""
    _capturing.append(Graph())
    try:
        yield _capturing[-1]
    finally:
        _capturing.pop()


class Pretend(torch.Tensor):
    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> "Pretend":
        made: Pretend = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            held.shape,
            dtype=held.dtype,
            device=f"{NAME}:0",
            strides=held.stride(),
            storage_offset=held.storage_offset(),
        )
        made.held = held
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    def tolist(self) -> Any:
        _count("tolist", read=True)
        return self.held.tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Mode(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _run(func: Any, args: Any, kwargs: Any) -> Any:
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
    ours = [x for x in tensors if isinstance(x, Pretend)]
    strangers = [x for x in tensors if not isinstance(x, Pretend) and x.dim() > 0]
    name = func.overloadpacket.__name__
    wanted = kwargs.get("device")
    if wanted is None and name in ("arange", "full", "rand", "randn", "zeros", "ones", "empty", "eye", "randint"):
        wanted = torch.device("cpu")
    if ours and name not in _CROSSING:
        assert not strangers, f"{func} was given {len(ours)} tensors of the device and {len(strangers)} of the CPU"
    there = wanted.type == NAME if wanted is not None else bool(ours)
    if name in ("copy_", "_copy_from"):
        there = isinstance(args[0], Pretend)
    blocks = not (kwargs.get("non_blocking") or (name == "copy_" and len(args) > 2 and args[2]))
    by_data = bool(ours) and (name in _BY_DATA or (name == "repeat_interleave" and len(args) + len(kwargs) < 2))
    home = bool(ours) and not there and (blocks or bool(_capturing))
    _count(
        str(func),
        read=name == "_local_scalar_dense" or by_data or _by_mask(name, args) or home,
        upload=there and (bool(strangers) if name in _CROSSING else bool(tensors) and not ours),
        blocks=blocks,
    )

    def held(x: Any) -> Any:
        if isinstance(x, Pretend):
            return x.held
        return torch.device("cpu") if isinstance(x, torch.device) and x.type == NAME else x

    held_args, held_kwargs = tree_map(held, args), tree_map(held, kwargs)
    out = func(*held_args, **held_kwargs)
    if there and _capturing and name not in _UNWRITTEN:
        _capturing[-1].calls.append((func, held_args, held_kwargs, out))
    if func._schema.is_mutable and ours:
        # what was written to is returned itself, not a second wrapper of it
        same = {id(x.held): x for x in ours}
        return tree_map(lambda x: same.get(id(x), Pretend(x) if there and isinstance(x, torch.Tensor) else x), out)
    return tree_map(lambda x: Pretend(x) if there and isinstance(x, torch.Tensor) else x, out)


def _by_mask(name: str, args: Any) -> bool:
    """Whether an index is a mask: how many rows it names is known on the device alone. One value for all needs no count."""
    if name not in _INDEXING:
        return False
    masks = [x for x in args[1] if isinstance(x, Pretend) and x.dtype in (torch.bool, torch.uint8)]
    return bool(masks) and not (name != "index" and args[2].numel() == 1)


def _count(what: str, read: bool = False, upload: bool = False, blocks: bool = True) -> None:
    if _capturing and (read or upload):
        raise CaptureError(f"{what} inside a capture {'reads on the host' if read else 'copies from the host'}")
    Crossings.reads += read
    Crossings.uploads += upload
    Crossings.waits += read or (upload and blocks)


def _tensor(data: Any, *, device: Any = None, **more: Any) -> torch.Tensor:
    # `with torch.device(...)` names it too: transformers asks a tensor of its own whether it is on "meta", and would take
    # the CPU for an answer and leave rotary frequencies unwritten
    return _real_tensor(data, device="cpu", **more).to(torch.empty(0).device if device is None else device)


class _Generator:
    """Every generator is the CPU's."""

    def __new__(cls, device: Any = "cpu") -> Any:
        return torch._C.Generator("cpu")


def _enter(context: Any) -> None:
    # tensors of a Python device cannot be inference tensors; no gradient is what matters here
    context.without = torch.no_grad()
    context.without.__enter__()


def _exit(context: Any, *error: Any) -> None:
    context.without.__exit__(*error)


@contextmanager
def pretend_device() -> Iterator[type[Crossings]]:
    """Inside, the device "pretend" exists. Registered for the whole process, harmless to what does not name it."""
    global _ready
    if not _ready:
        from torch.utils.backend_registration import _setup_privateuseone_for_python_backend  # torch 2.10

        _setup_privateuseone_for_python_backend(NAME)
        # what torch.autocast asks of a device
        torch.get_device_module(NAME).get_amp_supported_dtype = lambda: [torch.bfloat16]  # type: ignore[attr-defined]
        torch.get_device_module(NAME).Event = Event  # type: ignore[attr-defined]
        _ready = True
    Crossings.reads = Crossings.uploads = Crossings.waits = 0
    generator, inference = torch.Generator, torch.inference_mode
    kept = inference.__enter__, inference.__exit__
    # the original builds its tensor below the level at which a mode sees it
    torch.tensor = _tensor
    torch.Generator = _Generator  # type: ignore[assignment, misc]
    inference.__enter__, inference.__exit__ = _enter, _exit  # type: ignore[method-assign]
    try:
        with _Mode():
            yield Crossings
    finally:
        torch.tensor, torch.Generator = _real_tensor, generator  # type: ignore[misc]
        inference.__enter__, inference.__exit__ = kept  # type: ignore[method-assign]
