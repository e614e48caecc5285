"""What we ask for does not fight what an engine pins: we bound nothing from above, and the engines here leave room.

Whole resolutions need the package index; their results stand in `benchmarks/results/extras.md`.
"""

import importlib.metadata
import tomllib
from collections.abc import Iterator

import pytest
from packages import ROOT, distribution_of
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
# what an environment with an engine installs beside it
WITH_ENGINE = ("embedded", "demo", "train", "bench", "vllm", "sglang")
CONSTRAINTS = ("cpu.txt", "sglang-cpu.txt")


def asked(*extras: str) -> list[Requirement]:
    lines = [*PROJECT["dependencies"], *(line for extra in extras for line in EXTRAS[extra])]
    return [made for line in lines if (made := Requirement(line)).name != PROJECT["name"]]


def pins(name: str) -> Iterator[Requirement]:
    for line in (ROOT / "requirements" / name).read_text().splitlines():
        if line and not line.startswith("#"):
            yield Requirement(line)


@pytest.mark.parametrize("requirement", asked(*EXTRAS), ids=str)
def test_nothing_is_bounded_from_above(requirement: Requirement) -> None:
    assert {bound.operator for bound in requirement.specifier} <= {">="}


def requirements_of(engine: str) -> list[Requirement]:
    """What the engine that is installed here asks for, its extras aside. Skips where there is none."""
    every = [Requirement(line) for line in distribution_of(engine).requires or []]
    return [one for one in every if one.marker is None or one.marker.evaluate({"extra": ""})]


def leaves_room(ours: SpecifierSet, theirs: SpecifierSet) -> bool:
    """Whether a version that `theirs` allows at most is one that `ours`, of lower bounds alone, takes."""
    exact = [bound.version for bound in theirs if bound.operator == "=="]
    if exact:
        return all(ours.contains(version, prereleases=True) for version in exact)
    most = [Version(bound.version) for bound in theirs if bound.operator in {"<", "<=", "~="}]
    return all(Version(least.version) < version for least in ours for version in most)


def test_a_pin_that_fights_is_seen() -> None:
    assert leaves_room(SpecifierSet(">=2.6"), SpecifierSet("==2.13.0+cpu"))
    assert not leaves_room(SpecifierSet(">=2.14"), SpecifierSet("==2.13.0+cpu"))
    assert leaves_room(SpecifierSet(">=5.0"), SpecifierSet(">=5.16.1,<5.20"))
    assert not leaves_room(SpecifierSet(">=5.20"), SpecifierSet(">=5.16.1,<5.20"))


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_no_extra_fights_what_the_engine_asks_for(engine: str) -> None:
    theirs = {canonicalize_name(one.name): one.specifier for one in requirements_of(engine)}
    shared = [one for one in asked(*WITH_ENGINE) if canonicalize_name(one.name) in theirs]
    assert {"torch", "transformers"} <= {
        one.name for one in shared
    }  # both engines bound them, or this compares nothing
    fighting = [str(one) for one in shared if not leaves_room(one.specifier, theirs[canonicalize_name(one.name)])]
    assert not fighting


@pytest.mark.parametrize("name", CONSTRAINTS)
def test_a_tested_version_satisfies_what_is_asked(name: str) -> None:
    extras = ("embedded", "demo", "train", "docs", "dev") if name == "cpu.txt" else ("embedded",)
    known = {canonicalize_name(pin.name): pin.specifier for pin in pins(name)}
    for wish in asked(*extras):
        if wish.name == "torch":  # scripts/setup_env.py names it
            continue
        exact = known[canonicalize_name(wish.name)]
        [version] = [bound.version for bound in exact]
        assert wish.specifier.contains(version), f"{wish} against {exact}"


def test_what_is_installed_runs_on_every_python_that_we_promise() -> None:
    oldest = str(PROJECT["requires-python"]).removeprefix(">=") + ".0"
    refusing = {
        f"{found.name} {found.version}: {needed}"
        for found in importlib.metadata.distributions()
        if (needed := found.metadata["Requires-Python"]) and not SpecifierSet(needed).contains(oldest)
    }
    assert not refusing
