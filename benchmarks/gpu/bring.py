"""What a sitting found, as few small files: the table, all rows and logs in one archive, the trained weights in parts.

`python -m benchmarks.gpu.bring --out OUT --to DIR` writes summary.txt, results.tar.xz, weights.tar.01, ... and SHA256SUMS.
At home: `sha256sum -c SHA256SUMS`, `tar xf results.tar.xz`, `cat weights.tar.* | tar x`.
"""

import argparse
import io
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.gpu.parcels import MIB, ParcelError, sha256_of
from benchmarks.gpu.summary import summary

LOG_BYTES = 400_000  # of each log: its end


def bring(out: Path, to: Path, size: int, most: int = 8) -> list[Path]:
    """At most `most` files of at most `size` bytes. Raises ParcelError where that is too little."""
    if not out.is_dir():
        raise ParcelError(f"no results in {out}")
    to.mkdir(parents=True, exist_ok=True)
    made = [to / "summary.txt", to / "results.tar.xz"]
    made[0].write_text(summary(out), encoding="utf-8")
    with tarfile.open(made[1], "w:xz") as archive:
        for path in sorted([*out.glob("*.jsonl"), *out.glob("*.json"), *out.glob("train/*/log.jsonl")]):
            archive.add(path, str(path.relative_to(out)))
        for path in sorted(out.glob("logs/*")):
            end = path.read_bytes()[-LOG_BYTES:]
            entry = tarfile.TarInfo(f"logs/{path.name}")
            entry.size = len(end)
            archive.addfile(entry, io.BytesIO(end))
    weights = out / "train" / "full" / "drafter"
    if weights.is_dir():
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            archive.add(weights, "drafter")
        data = buffer.getvalue()
        for number, at in enumerate(range(0, len(data), size), 1):
            made.append(to / f"weights.tar.{number:02}")
            made[-1].write_bytes(data[at : at + size])
    (to / "SHA256SUMS").write_text("".join(f"{sha256_of(path)}  {path.name}\n" for path in made), encoding="utf-8")
    made.append(to / "SHA256SUMS")
    large = [path.name for path in made if path.stat().st_size > size]
    if len(made) > most or large:
        raise ParcelError(f"{len(made)} files, {', '.join(large) or 'none'} too large: raise --size or --most")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu.bring",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, required=True, help="what benchmarks.gpu was told as --out")
    parser.add_argument("--to", type=Path, required=True, help="folder of what is carried home")
    parser.add_argument("--size", type=float, default=15, help="MiB of a file (default 15)")
    parser.add_argument("--most", type=int, default=8, help="files (default 8)")
    args = parser.parse_args(arguments)
    try:
        for path in bring(args.out, args.to, int(args.size * MIB), args.most):
            print(f"{path.stat().st_size / MIB:7.2f} MiB  {path}")
    except (ParcelError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
