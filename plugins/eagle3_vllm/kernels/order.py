"""Floats as integers of the same order, so that a score and what it is the score of are compared as one number."""

from vllm.triton_utils import tl, triton


@triton.jit
def ordered(x):  # type: ignore[no-untyped-def]
    """int32 in the order of fp32 `x`, which is a number or infinite; both zeros are one."""
    bits = tl.where(x == 0, 0.0, x).to(tl.int32, bitcast=True)
    return tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


@triton.jit
def unordered(key):  # type: ignore[no-untyped-def]
    """The fp32 behind `ordered`."""
    return tl.where(key < 0, key ^ 0x7FFFFFFF, key).to(tl.float32, bitcast=True)


@triton.jit
def joined(x, low):  # type: ignore[no-untyped-def]
    """int64: by `x`, of equals by `low`, an int32 that is not negative."""
    return (ordered(x).to(tl.int64) << 32) | low.to(tl.int64)


@triton.jit
def parted(key):  # type: ignore[no-untyped-def]
    """(fp32, int32) of `joined`."""
    return unordered((key >> 32).to(tl.int32)), (key & 0x7FFFFFFF).to(tl.int32)
