"""A checkpoint's folder, read without trust and without haste: headers first, bytes only when asked for."""

import json
import math
import pickle
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eagle3_serving.errors import InputError
from eagle3_serving.files import read_text
from eagle3_serving.folders import elsewhere, is_state, no_config
from eagle3_serving.hub import require_source

Json = dict[str, Any]

# The format's names of dtypes (safetensors).
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
    "U16": torch.uint16,
    "U32": torch.uint32,
    "U64": torch.uint64,
}
_MAX_HEADER = 100_000_000  # bytes; the format's own limit
_MAX_JSON = 64_000_000
_PIECE = 1 << 24  # bytes
_MAX_NAME = 200  # characters
_SHARD = re.compile(r"-\d+-of-0*(?!1\.)[1-9]\d*\.")  # of several


@dataclass(frozen=True)
class Span:
    """Bytes that stand in a file as a safetensors file wants them, from `offset`."""

    path: Path
    offset: int


@dataclass(frozen=True)
class StoredTensor:
    """A tensor that is not in memory: `load(a, b)` reads rows a to b of its first dimension."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    load: Callable[[int, int], Tensor]
    span: Span | None = None

    @property
    def num_rows(self) -> int:
        return self.shape[0] if self.shape else 1

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def rows(self, start: int, stop: int) -> Tensor:
        """[stop - start, *shape[1:]]"""
        return self.load(start, stop)

    def read(self) -> Tensor:
        return self.load(0, self.num_rows).reshape(self.shape)

    def spans(self) -> Iterator[tuple[int, int]]:
        """First and last row (exclusive) of pieces of a few megabytes, so that no more is in memory at a time."""
        step = max(1, _PIECE // max(1, self.nbytes // max(self.num_rows, 1)))
        return ((start, min(start + step, self.num_rows)) for start in range(0, self.num_rows, step))

    def pieces(self) -> Iterator[Tensor]:
        """All rows, piece by piece."""
        return (self.rows(start, stop) for start, stop in self.spans())

    def part(self, start: int, stop: int) -> "StoredTensor":
        """Rows `start` to `stop` as a tensor of its own; nothing is read."""
        span = self.span
        if span is not None:
            span = Span(span.path, span.offset + start * (self.nbytes // max(self.num_rows, 1)))
        return replace(
            self,
            shape=(stop - start, *self.shape[1:]),
            load=lambda a, b: self.load(start + a, start + b),
            span=span,
        )


def in_memory(name: str, tensor: Tensor) -> StoredTensor:
    """A tensor that is there already."""
    flat = tensor.detach()
    return StoredTensor(
        name,
        tensor.dtype,
        tuple(tensor.shape),
        lambda a, b: flat[a:b] if flat.dim() else flat.reshape(1)[a:b],
    )


def computed(name: str, dtype: torch.dtype, shape: tuple[int, ...], make: Callable[[], Tensor]) -> StoredTensor:
    """A tensor that is made when it is read."""
    return StoredTensor(name, dtype, shape, lambda a, b: make()[a:b])


def zeros(name: str, dtype: torch.dtype, shape: tuple[int, ...]) -> StoredTensor:
    """All zero, and in memory only while it is read."""
    return StoredTensor(name, dtype, shape, lambda a, b: torch.zeros((b - a, *shape[1:]), dtype=dtype))


@dataclass(frozen=True)
class Source:
    """A folder with a config.json and tensors. `files` hold the tensors, in reading order."""

    directory: Path
    config: Json
    tensors: dict[str, StoredTensor]
    metadata: dict[str, str]
    files: tuple[Path, ...]
    quantization: Json | None = None

    def digest(self) -> str:
        """BLAKE3 over config.json and every weight file, in order: SHA-256 takes longer than the conversion."""
        from blake3 import blake3  # only a conversion needs it: what merely loads runs without it

        digest = blake3()
        buffer = memoryview(bytearray(1 << 18))  # one for all, small enough to stay in the processor's cache
        for path in (self.directory / "config.json", *self.files):
            with path.open("rb", buffering=0) as file:
                while count := file.readinto(buffer):
                    digest.update(buffer[:count])
        return digest.hexdigest()


def read_json(path: Path) -> Json:
    """A JSON object from `path`, or InputError that names the file."""
    try:
        if path.exists() and not path.is_file():
            raise InputError(f"{path} is a directory, not a file")
        if path.stat().st_size > _MAX_JSON:
            raise InputError(f"{path} has over {_MAX_JSON} bytes: that is no configuration")
        value = json.loads(read_text(path))
    except FileNotFoundError:
        raise InputError(f"{path} is missing") from None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read: {_line(error)}") from None
    if not isinstance(value, dict):
        raise InputError(f"{path} does not hold a JSON object")
    return value


def open_source(directory: Path) -> Source:
    """Read what the folder says of itself. Raises InputError on anything unreadable, hostile or inconsistent."""
    if not directory.is_dir():
        raise InputError(f"{directory} is not a directory; give a local checkpoint's folder or a hub id, owner/name")
    if not (directory / "config.json").exists():
        raise InputError(no_config(directory))
    config = read_json(directory / "config.json")
    quantization = config.get("quantization_config")
    if quantization is None and (directory / "hf_quant_config.json").is_file():
        quantization = read_json(directory / "hf_quant_config.json")
    if quantization is not None and not isinstance(quantization, dict):
        raise InputError(f"{directory}: quantization_config is not a JSON object")
    names, promised = _weight_files(directory)
    tensors: dict[str, StoredTensor] = {}
    metadata: dict[str, str] = {}
    for name in names:
        path = directory / name
        if not path.is_file():
            raise InputError(f"{path} is missing, and the index beside it names it; fetch or copy that file too")
        found = _open_pickle(path) if name.endswith(".bin") else _open_safetensors(path, metadata)
        for key, tensor in found.items():
            if len(key) > _MAX_NAME or not key.isprintable():
                raise InputError(
                    f"{path}: a tensor's name has {len(key)} characters or unprintable ones: {key[:60]!r}..."
                )
            if key in tensors:
                raise InputError(f"{path}: tensor {key} appears twice; remove one of the two files that hold it")
            tensors[key] = tensor
    absent = sorted(promised - tensors.keys())
    if absent:
        raise InputError(
            f"{directory}: the index promises tensor {absent[0][:80]!r} ({len(absent)} in all) that no file holds"
        )
    return Source(directory, config, tensors, metadata, tuple(directory / n for n in names), quantization)


def resolve(source: str) -> Path:
    """A local folder as it is, or a hub id (`owner/name`) through huggingface_hub and its cache."""
    path = Path(source)
    require_source(source)
    if path.is_dir():
        return path
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise InputError(f"{source} looks like a hub id, and huggingface_hub is not installed") from None
    try:
        folder = Path(snapshot_download(source, allow_patterns=["*.json", "*.safetensors"]))
        if not list(folder.glob("*.safetensors")):
            folder = Path(snapshot_download(source, allow_patterns=["*.json", "pytorch_model*.bin"]))
    except Exception as error:  # the library raises some twenty kinds, httpx's among them
        raise InputError(f"{source} is no local folder and could not be had from the hub: {_line(error)}") from None
    return folder


def _line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return (text or type(error).__name__)[:300]


def _weight_files(directory: Path) -> tuple[list[str], set[str]]:
    """The names of the files that hold tensors, and the tensors that an index promises."""
    for index_name, single in (
        ("model.safetensors.index.json", "model.safetensors"),
        ("pytorch_model.bin.index.json", "pytorch_model.bin"),
    ):
        index = directory / index_name
        if index.exists():
            weight_map = read_json(index).get("weight_map")
            if not isinstance(weight_map, dict) or not weight_map:
                raise InputError(f"{index} has no weight_map")
            for name in weight_map.values():
                _confine(index, name, single)
            return sorted(set(weight_map.values())), set(weight_map)
        if (directory / single).exists():
            return [single], set()
    for suffix, index_name in (
        (".safetensors", "model.safetensors.index.json"),
        (".bin", "pytorch_model.bin.index.json"),
    ):
        others = sorted(path.name for path in directory.glob(f"*{suffix}") if not is_state(path.name))
        if len(others) == 1 and not _SHARD.search(others[0]):
            return others, set()
        if others:
            raise InputError(
                f"{directory / index_name} is missing: there are {len(others)} {suffix} files ({others[0]}, ...), and it tells "
                "which tensor lies in which; fetch or copy it too"
            )
    raise InputError(
        f"{directory / 'model.safetensors'} is missing; a drafter directory holds config.json and model.safetensors{elsewhere(directory)}"
    )


def _confine(index: Path, name: object, single: str) -> None:
    suffix = Path(single).suffix
    if not isinstance(name, str) or Path(name).name != name or "\\" in name or "\0" in name or name in (".", ".."):
        raise InputError(f"{index}: shard name {name!r} leaves the directory; refusing to follow it")
    if not name.endswith(suffix):
        raise InputError(f"{index}: shard {name!r} is no {suffix} file")


def _open_safetensors(path: Path, metadata: dict[str, str]) -> dict[str, StoredTensor]:
    """Tensors of one file, its header checked: length, dtypes, sizes, bounds, overlaps, holes, double names."""

    def wrong(why: str) -> InputError:
        return InputError(f"{path} is not a readable safetensors file: {why}; fetch it again")

    def unique(pairs: list[tuple[str, Any]]) -> Json:
        value = dict(pairs)
        if len(value) != len(pairs):
            raise ValueError("a name appears twice in its header")
        return value

    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(_MAX_HEADER, size - 8):
                raise wrong(f"its header would have {length} bytes, the file has {size}")
            header = json.loads(file.read(length).decode("utf-8"), object_pairs_hook=unique)
    except (OSError, ValueError, RecursionError) as error:
        raise wrong(_line(error)) from None
    if not isinstance(header, dict):
        raise wrong("its header is no JSON object")
    extra = header.pop("__metadata__", {})
    if not isinstance(extra, dict) or not all(isinstance(v, str) for v in extra.values()):
        raise wrong("its __metadata__ does not map text to text")
    metadata.update(extra)
    data, tensors, spans = 8 + length, {}, []
    for name, entry in header.items():
        try:
            dtype, shape, (start, stop) = DTYPES[entry["dtype"]], entry["shape"], entry["data_offsets"]
            whole = all(type(n) is int and n >= 0 for n in (*shape, start, stop)) and len(shape) <= 8
        except KeyError as error:
            raise wrong(f"tensor {name[:80]!r} has an unknown or missing {error}") from None
        except (TypeError, ValueError):
            whole = False
        if not whole or stop - start != math.prod(shape) * dtype.itemsize or data + stop > size:
            raise wrong(f"tensor {name[:80]!r} has a shape, a size and offsets that do not agree")
        spans.append((start, stop))
        tensors[name] = _from_file(name, dtype, tuple(shape), path, data + start)
    end = 0
    for start, stop in sorted(spans):
        if start != end:
            raise wrong("its tensors overlap or leave holes")
        end = stop
    if data + end != size:
        raise wrong(f"{size - data - end} bytes follow its last tensor")
    return tensors


def _from_file(name: str, dtype: torch.dtype, shape: tuple[int, ...], path: Path, offset: int) -> StoredTensor:
    row = math.prod(shape[1:]) * dtype.itemsize

    def load(start: int, stop: int) -> Tensor:
        buffer = bytearray((stop - start) * row)
        with path.open("rb") as file:
            file.seek(offset + start * row)
            if file.readinto(buffer) != len(buffer):
                raise InputError(f"{path} ended early while tensor {name} was read; did another program change it?")
        if not buffer:
            return torch.empty((stop - start, *shape[1:]), dtype=dtype)
        flat = torch.frombuffer(buffer, dtype=torch.uint8)
        values = flat != 0 if dtype == torch.bool else flat.view(dtype)
        return values.reshape(stop - start, *shape[1:])

    return StoredTensor(name, dtype, shape, load, Span(path, offset))


def _open_pickle(path: Path) -> dict[str, StoredTensor]:
    """Tensors of a PyTorch pickle; `weights_only`, so nothing in it is run."""
    try:
        try:
            value = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:  # the format before 1.6 cannot be mapped
            value = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise InputError(
            f"{path} holds more than tensors, and would run code where it is loaded; get it as safetensors"
        ) from None
    except Exception as error:  # a damaged zip or pickle raises nearly anything
        raise InputError(f"{path} is not a readable PyTorch file: {_line(error)}; fetch it again") from None
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise InputError(f"{path} holds no mapping of names to tensors")
    known = set(DTYPES.values())
    for name, tensor in value.items():
        strided = type(tensor) in (Tensor, torch.nn.Parameter) and tensor.layout == torch.strided
        if not strided or tensor.dtype not in known or tensor.device.type != "cpu":
            raise InputError(f"{path}: {name[:80]!r} is no plain tensor")
    return {name: in_memory(name, tensor) for name, tensor in value.items()}
