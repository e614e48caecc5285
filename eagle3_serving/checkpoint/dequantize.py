"""Stored rows -> numbers: plain dtypes as they are, fp8 and int8 times their scales; 4-bit packing is not read."""

import torch
from torch import Tensor

from eagle3_serving.checkpoint.neutral import Meaning
from eagle3_serving.checkpoint.source import StoredTensor
from eagle3_serving.errors import CheckError

_ONE_BYTE = (torch.float8_e4m3fn, torch.float8_e5m2, torch.int8)


def packed(meaning: Meaning) -> str | None:
    """The name of a weight whose numbers are packed in a way that is not read, or None."""
    for name, tensor in meaning.tensors.items():
        if tensor.dtype == torch.uint8 or f"{name}_zero_point" in meaning.scales:
            return name
    return None


def dense_rows(meaning: Meaning, name: str, start: int, stop: int) -> Tensor:
    """Rows `start` to `stop` of parameter `name` in fp32 (fp64 stays): [stop - start, ...]."""
    tensor = meaning.tensors[name]
    rows = tensor.rows(start, stop)
    if tensor.dtype not in _ONE_BYTE:
        return rows if rows.dtype == torch.float64 else rows.float()
    scale = meaning.scales.get(f"{name}_scale", meaning.scales.get(f"{name}_scale_inv"))
    if scale is None:
        raise CheckError(f"tensor {name} is {tensor.dtype} and has no scale")
    return rows.float() * _expand(scale, tensor, start, stop)


def _expand(scale: StoredTensor, tensor: StoredTensor, start: int, stop: int) -> Tensor:
    """One scale a tensor, a row or a block -> factors that broadcast over rows `start` to `stop`."""
    value = scale.read().float()
    rows, columns = tensor.shape[0], tensor.shape[-1]
    if value.numel() == 1:
        return value.reshape(1)
    if value.numel() == rows:
        return value.reshape(rows, 1)[start:stop]
    if value.dim() == 2 and len(tensor.shape) == 2:
        # blocks of 128, or whatever power of two the counts imply
        height, width = (1 << (-(-n // m) - 1).bit_length() for n, m in zip(tensor.shape, value.shape, strict=True))
        if (-(-rows // height), -(-columns // width)) == tuple(value.shape):
            row_index = torch.arange(start, stop) // height
            return value[row_index].repeat_interleave(width, dim=1)[:, :columns]
    raise CheckError(f"tensor {scale.name} has shape {scale.shape}, which scales no tensor of shape {tensor.shape}")
