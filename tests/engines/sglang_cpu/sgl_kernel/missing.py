"""Operators that SGLang imports and EAGLE decoding on a CPU never calls."""

from collections.abc import Callable
from typing import NoReturn


def absent(name: str) -> Callable[..., NoReturn]:
    def call(*_: object, **__: object) -> NoReturn:
        raise NotImplementedError(f"sgl_kernel.{name} has no torch reference: the tests' stand-in lacks it")

    return call
