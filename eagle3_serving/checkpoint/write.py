"""Tensors -> one safetensors file, a few rows at a time; bytes that need no change are copied as they stand."""

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import torch

from eagle3_serving.checkpoint.source import DTYPES, Span, StoredTensor
from eagle3_serving.errors import InputError

_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_CHUNK = 1 << 24  # bytes
_PAGE = 4096
Progress = Callable[[int], None]


def write_safetensors(
    path: Path, tensors: dict[str, StoredTensor], metadata: dict[str, str], progress: Progress = lambda _: None
) -> int:
    """Write `path`, which must not exist; `progress` is told of every piece's bytes. Returns the bytes of all tensors."""
    # wide dtypes first: every tensor then stands aligned, as the format's own writer has it; and in the source's order
    order = sorted(tensors.items(), key=lambda item: (-item[1].dtype.itemsize, *_place(item[1]), item[0]))
    header: dict[str, object] = {"__metadata__": metadata}
    offset = 0
    for name, tensor in order:
        header[name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + tensor.nbytes],
        }
        offset += tensor.nbytes
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * _padding(8 + len(head), [tensor for _, tensor in order])
    with path.open("xb") as file:
        file.write(struct.pack("<Q", len(head)) + head)
        file.flush()
        for _, tensor in order:
            if tensor.span is not None:
                _copy(file, tensor.span, tensor.nbytes, progress)
            else:
                _write_rows(file, tensor, progress)
    return offset


def _place(tensor: StoredTensor) -> tuple[str, int]:
    return ("", 0) if tensor.span is None else (str(tensor.span.path), tensor.span.offset)


def _padding(length: int, order: list[StoredTensor]) -> int:
    """Spaces behind a header that would take `length` bytes of the file: a multiple of 8, and where it can be as many as
    let the largest copied tensor stand in its page as it did, for the kernel then copies whole pages (1.5x as fast)."""
    offset, largest, wanted = length, 0, 0
    for tensor in order:
        if tensor.span is not None and tensor.nbytes > largest:
            largest, wanted = tensor.nbytes, (tensor.span.offset - offset) % _PAGE
        offset += tensor.nbytes
    return wanted if (length + wanted) % 8 == 0 else -length % 8


def _write_rows(file: BinaryIO, tensor: StoredTensor, progress: Progress) -> None:
    for rows in tensor.pieces():
        piece = rows.contiguous()
        if piece.dtype != tensor.dtype:
            raise InputError(f"tensor {tensor.name} changed its dtype while it was read")
        flat = piece.reshape(-1).view(torch.uint8)
        file.write(flat.numpy().data)
        progress(flat.numel())
    file.flush()


def _copy(file: BinaryIO, span: Span, size: int, progress: Progress) -> None:
    """`size` bytes from `span`, inside the kernel where it can."""
    done = 0
    with span.path.open("rb") as source:
        kernel = hasattr(os, "copy_file_range")
        while done < size:
            want = min(size - done, 4 * _CHUNK)
            if kernel:
                try:
                    count = os.copy_file_range(source.fileno(), file.fileno(), want, offset_src=span.offset + done)
                except OSError:  # other file systems, or an old kernel
                    kernel = False
                    continue
            else:
                source.seek(span.offset + done)
                piece = source.read(min(want, _CHUNK))
                count = len(piece)
                file.write(piece)
            if count == 0:
                raise InputError(f"{span.path} ended early while it was copied; did another program change it?")
            done += count
            progress(count)
    file.flush()
