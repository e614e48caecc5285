"""A target made once on this machine out of what a package carries: checked by hash, whole or not there at all."""

import hashlib
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from eagle3_serving.errors import CheckError, InputError
from eagle3_serving.targets.cache import cache_directory
from eagle3_serving.targets.package_file import sha256_of

WEIGHTS, SUMS = "model.safetensors", "SHA256SUMS"
_OURS = {WEIGHTS, SUMS, "config.json", "generation_config.json", "chat_template.jinja", "tokenizer.json"} | {
    "tokenizer_config.json",
    "special_tokens_map.json",
}


@dataclass(frozen=True)
class Recipe:
    """How one target is made. `locate(scratch)` gives the file that `convert(file, out)` makes the directory `out` of;
    `tensors_sha256` is over names, dtypes, shapes and bytes of the tensors, in order: a file's header may vary, these may
    not. `terms`: what whoever fetches it agrees to, in a line."""

    name: str
    title: str
    terms: str
    tensors_sha256: str
    locate: Callable[[Path], Path]
    convert: Callable[[Path, Path], None]

    def fetch(self, directory: Path | None = None) -> Path:
        """The target's Hugging Face directory, made on the first call. Default place: the user's cache.

        Raises CheckError where a hash is not right, InputError where the package or the place cannot be had.
        """
        directory = directory or cache_directory() / self.name
        if self.is_whole(directory):
            return directory
        _refuse_foreign(directory)
        try:
            directory.parent.mkdir(parents=True, exist_ok=True)
            scratch = Path(tempfile.mkdtemp(dir=directory.parent, prefix=f".{directory.name}-"))
        except OSError as error:
            raise InputError(f"cannot write beside {directory}: {error.strerror}; give another --dir") from None
        try:
            made = scratch / "model"
            self.say_terms()
            self.convert(self.locate(scratch), made)
            if (found := tensors_sha256(made / WEIGHTS)) != self.tensors_sha256:
                raise CheckError(
                    f"the converted {self.name} has tensor hash {found[:16]}, expected {self.tensors_sha256[:16]}"
                )
            _write_sums(made)
            if directory.exists():
                shutil.rmtree(directory)
            try:
                made.replace(directory)
            except OSError:
                # another process may have been faster; what it made serves as well
                if not self.is_whole(directory):
                    raise
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        return directory

    def say_terms(self) -> None:
        """In one line, once a process."""
        _say(f"{self.title}: {self.terms}")

    def is_whole(self, directory: Path) -> bool:
        """Every file is there and as it was made, and the weights are the ones that were measured."""
        try:
            lines = (directory / SUMS).read_text().splitlines()
            sums = {name: digest for digest, name in (line.split("  ", 1) for line in lines)}
            return (
                all(sha256_of(directory / name) == digest for name, digest in sums.items())
                and tensors_sha256(directory / WEIGHTS) == self.tensors_sha256
            )
        except (OSError, ValueError):
            return False


@cache
def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def tensors_sha256(path: Path) -> str:
    """Hash of every tensor's name, dtype, shape and bytes; empty where the file is not readable safetensors."""
    digest = hashlib.sha256()
    try:
        with safe_open(path, framework="pt") as file:
            for name in sorted(file.keys()):
                tensor = file.get_tensor(name)
                digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
                digest.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
    except (OSError, SafetensorError):
        return ""
    return digest.hexdigest()


def _write_sums(directory: Path) -> None:
    # the weights have their own hash; the other files may differ a little between versions of transformers
    names = sorted(path.name for path in directory.iterdir() if path.name != WEIGHTS)
    (directory / SUMS).write_text("".join(f"{sha256_of(directory / name)}  {name}\n" for name in names))


def _refuse_foreign(directory: Path) -> None:
    """A place that is remade is emptied first, so it must hold nothing that a conversion does not write."""
    if not directory.exists():
        return
    if not directory.is_dir():
        raise InputError(f"{directory} is a file; give a directory")
    others = sorted(path.name for path in directory.iterdir() if path.name not in _OURS)
    if others:
        raise InputError(f"{directory} holds {others[0]}, which is not the target's; give another --dir")
