"""Files of any size in pieces of a stated size, carried one by one, joined on the other side, every byte hash-checked.

`split` writes PARCEL-DIR/001, 002, ..., each a folder of at most the stated size with its own manifest, so that any of
them can be carried alone and in any order. `take` copies a parcel into a store, checking its hashes; `join` makes the
files again, and says which parcels are missing. Standard library only: it runs before anything is installed.
"""

import argparse
import hashlib
import json
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"
MIB = 1 << 20
_EXAMPLES = """examples:
  python -m benchmarks.gpu.parcels split --size 40 --out parcels wheels/ target/ prompts.jsonl
  python -m benchmarks.gpu.parcels take parcels/003 --store STORE     (on the other machine, parcel by parcel)
  python -m benchmarks.gpu.parcels join --store STORE --out inputs
"""


class ParcelError(Exception):
    """One line: what is wrong, and the way out."""


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def split(sources: Sequence[Path], out: Path, size: int) -> list[Path]:
    """Files, and folders with all they hold, as parcels of at most `size` bytes; names begin at the source's own name.

    Raises ParcelError where a source is missing, two files have one name, or `out` holds something already.
    """
    if size < 1:
        raise ParcelError(f"a parcel of {size} bytes holds nothing")
    if out.exists() and any(out.iterdir()):
        raise ParcelError(f"{out} is not empty: give another folder, or empty it")
    files = dict(_named(sources))
    digests = {name: sha256_of(path) for name, path in files.items()}
    names = sorted(files)
    beside = out.with_name(f".{out.name}.partial")
    shutil.rmtree(beside, ignore_errors=True)
    pieces: list[dict[str, Any]] = []
    room, parcel, number = 0, 0, 0
    for name in names:
        whole, at = files[name].stat().st_size, 0
        with files[name].open("rb") as file:
            while at < whole or whole == 0:
                if room == 0:
                    parcel, room = parcel + 1, size
                    (beside / f"{parcel:03}").mkdir(parents=True)
                data = file.read(min(room, whole - at))
                piece = f"{number:06}.piece"
                (beside / f"{parcel:03}" / piece).write_bytes(data)
                digest = hashlib.sha256(data).hexdigest()
                pieces.append({"parcel": parcel, "piece": piece, "file": name, "at": at, "sha256": digest})
                number, at, room = number + 1, at + len(data), room - len(data)
                if whole == 0:
                    break
    whole_files = {name: {"bytes": files[name].stat().st_size, "sha256": digests[name]} for name in names}
    for place in range(1, parcel + 1):
        mine = [piece for piece in pieces if piece["parcel"] == place]
        manifest = {"parcel": place, "of": parcel, "pieces": mine, "files": whole_files}
        (beside / f"{place:03}" / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    if out.exists():
        out.rmdir()
    beside.replace(out)
    return sorted(out.iterdir())


def _named(sources: Iterable[Path]) -> Iterator[tuple[str, Path]]:
    seen: set[str] = set()
    for source in sources:
        if not source.exists():
            raise ParcelError(f"nothing at {source}")
        found = sorted(p for p in source.rglob("*") if p.is_file()) if source.is_dir() else [source]
        for path in found:
            name = str(path.relative_to(source.parent))
            if name in seen:
                raise ParcelError(f"two files would be called {name}: rename one, or split them apart")
            seen.add(name)
            yield name, path
    if not seen:
        raise ParcelError("no file to split")


def read_manifest(parcel: Path) -> dict[str, Any]:
    """Raises ParcelError where it is not one, or names a path that leads out of its folder."""
    try:
        manifest: dict[str, Any] = json.loads((parcel / MANIFEST).read_text(encoding="utf-8"))
        names = [*manifest["files"], *(piece["piece"] for piece in manifest["pieces"])]
        int(manifest["parcel"]), int(manifest["of"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ParcelError(f"{parcel} is not a parcel ({error}); carry it again") from None
    for name in names:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise ParcelError(f"{parcel} names {name}, which leads out of its folder: it is refused")
    return manifest


def take(parcel: Path, store: Path) -> str:
    """Copy one parcel into the store, whole and checked; what the store holds by then, in a line."""
    manifest = read_manifest(parcel)
    for piece in manifest["pieces"]:
        path = parcel / piece["piece"]
        if not path.is_file() or sha256_of(path) != piece["sha256"]:
            raise ParcelError(f"{path} is missing or damaged: carry the parcel again")
    place = store / f"{manifest['parcel']:03}"
    beside = store / f".{place.name}.partial"
    shutil.rmtree(beside, ignore_errors=True)
    store.mkdir(parents=True, exist_ok=True)
    shutil.copytree(parcel, beside)
    shutil.rmtree(place, ignore_errors=True)
    beside.replace(place)
    here = sorted(p.name for p in store.iterdir() if p.is_dir() and not p.name.startswith("."))
    return f"parcel {manifest['parcel']} of {manifest['of']} taken; here are {', '.join(here)}"


def join(store: Path, out: Path) -> list[Path]:
    """Make the files again under `out`, each written beside and renamed when its hash is right; files that are there and
    right already are left. Raises ParcelError naming the parcels that are missing."""
    parcels = sorted(p for p in store.iterdir() if p.is_dir() and not p.name.startswith(".")) if store.is_dir() else []
    if not parcels:
        raise ParcelError(f"no parcel in {store}")
    manifests = {p: read_manifest(p) for p in parcels}
    first = next(iter(manifests.values()))
    if any(m["files"] != first["files"] or m["of"] != first["of"] for m in manifests.values()):
        raise ParcelError(f"{store} holds parcels of different splits: empty it and carry one split")
    missing = sorted(set(range(1, first["of"] + 1)) - {int(m["parcel"]) for m in manifests.values()})
    if missing:
        raise ParcelError(f"{len(missing)} of {first['of']} parcels are missing: {', '.join(map(str, missing))}")
    pieces = sorted(
        (
            (piece["file"], piece["at"], parcel / piece["piece"])
            for parcel, m in manifests.items()
            for piece in m["pieces"]
        ),
        key=lambda piece: piece[:2],
    )
    made = []
    for name, about in first["files"].items():
        path = out / name
        made.append(path)
        if path.is_file() and path.stat().st_size == about["bytes"] and sha256_of(path) == about["sha256"]:
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(f".{path.name}.partial")
        with beside.open("wb") as file:
            for _, _, piece in (p for p in pieces if p[0] == name):
                file.write(piece.read_bytes())
        if sha256_of(beside) != about["sha256"]:
            beside.unlink()
            raise ParcelError(f"{path} has the wrong hash after joining: split and carry it again")
        beside.replace(path)
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu.parcels",
        description=__doc__,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    one = verbs.add_parser("split", help="files and folders into parcels")
    one.add_argument("sources", type=Path, nargs="+")
    one.add_argument("--out", type=Path, required=True)
    one.add_argument("--size", type=float, default=40, help="MiB of a parcel (default 40)")
    one = verbs.add_parser("take", help="one parcel into the store")
    one.add_argument("parcel", type=Path)
    one.add_argument("--store", type=Path, required=True)
    one = verbs.add_parser("join", help="the store's files made again")
    one.add_argument("--store", type=Path, required=True)
    one.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(arguments)
    try:
        if args.verb == "split":
            for parcel in split(args.sources, args.out, int(args.size * MIB)):
                print(f"{parcel}  {sum(p.stat().st_size for p in parcel.iterdir()) / MIB:.1f} MiB")
        elif args.verb == "take":
            print(take(args.parcel, args.store))
        else:
            made = join(args.store, args.out)
            print(f"{len(made)} files in {args.out}")
    except (ParcelError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
