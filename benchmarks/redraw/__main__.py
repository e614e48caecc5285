"""Redraw every picture and rewrite every table of the results from their raw files.

    python -m benchmarks.redraw                  # all of it
    python -m benchmarks.redraw --list
    python -m benchmarks.redraw --only sglang-sweep.png tuning
    python -m benchmarks.redraw --check          # says what is out of date, writes nothing

Pictures go to benchmarks/results; those that the site shows also to docs/assets/results. Texts go between their markers on
README.md and the pages of benchmarks/results and docs. Exit code 1: --check found something.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.redraw import (  # noqa: F401
    arithmetic,
    by_load,
    exact,
    front,
    gpu,
    index,
    kept,
    knobs,
    learning,
    lengths,
    raw,
    soaks,
    terminal,
    vllm_alone,
)
from benchmarks.redraw.catalogue import PICTURES, TEXTS
from benchmarks.redraw.pages import COPIES, copies, filled, pages, shown
from benchmarks.redraw.raw import RESULTS, ROOT
from benchmarks.redraw.stamp import stamped, wrong
from eagle3_serving.errors import Eagle3Error
from eagle3_serving.files import write_whole


def draw(name: str) -> bytes:
    """A picture, or a page of `eagle3 bench` with its pictures inside."""
    token = raw.used.set(set())
    try:
        made = PICTURES[name]()
        return stamped(made, raw.used.get()) if name.endswith(".png") else made
    finally:
        raw.used.reset(token)


def redraw(only: Sequence[str]) -> list[Path]:
    """Write what is made of the raw files, all or `only` some of it, and return the files that changed."""
    changed = []
    if not only or set(only) & set(TEXTS):  # first: a text may show a picture
        for page in pages():
            changed += _write(page, filled(page).encode())
    on_the_site = copies()
    for name in PICTURES:
        if only and name not in only:
            continue
        content = draw(name)
        for folder in (RESULTS, COPIES) if name in on_the_site else (RESULTS,):
            changed += _write(folder / name, content)
    return changed


def _write(path: Path, content: bytes) -> list[Path]:
    if path.is_file() and path.read_bytes() == content:
        return []
    write_whole(path, content)
    return [path]


def stale() -> list[str]:
    """A line for everything that is not as the raw files would have it, and for pictures that nothing makes."""
    found = []
    for page in pages():
        name = page.relative_to(ROOT)
        if filled(page) != page.read_text(encoding="utf-8"):
            found.append(f"{name}: a table or a sentence is not that of the raw files")
        found += [
            f"{name} shows {one.name}, which nothing makes" for one in sorted(shown(page)) if one.name not in PICTURES
        ]
    drawn = [name for name in PICTURES if name.endswith(".png")]
    files = [RESULTS / name for name in drawn] + [COPIES / name for name in copies() if name in PICTURES]
    found += [f"{file.relative_to(ROOT)} {why}" for file in files if (why := wrong(file))]
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.redraw", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--list", action="store_true", help="names of all pictures and texts")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="only these; of texts, all are written")
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit code 1 where something is out of date"
    )
    args = parser.parse_args(arguments)
    if unknown := [name for name in args.only if name not in PICTURES and name not in TEXTS]:
        parser.error(f"nothing is called {', '.join(unknown)}; --list names all")
    try:
        if args.list:
            print("\n".join([*PICTURES, *TEXTS]))
            return 0
        if args.check:
            lines = stale()
            for one in lines:
                print(one)
            if lines:
                print("python -m benchmarks.redraw makes them anew", file=sys.stderr)
            return int(bool(lines))
        for path in redraw(args.only):
            print(path.relative_to(ROOT))
    except Eagle3Error as error:
        print(f"redraw: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
