"""What is published holds the packages, whole, and nothing else."""

import email
import tarfile
import zipfile
from pathlib import Path

import pytest
from packages import ROOT, build, copy_sources

from eagle3_serving import __version__

DRAFTER = "checkpoints/smollm2-135m-instruct"
INFO = f"eagle3_serving-{__version__}.dist-info"
DATA = f"eagle3_serving-{__version__}.data/data/share/eagle3-serving"
LIMIT = 30e6  # bytes; the drafter is 17 million of them


def files(folder: Path) -> set[str]:
    """The files of `folder` of the checkout, from there, less what running leaves behind."""
    every = {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}
    return {
        str(path)
        for path in every
        if not {"__pycache__", ".DS_Store"} & set(path.parts) and "egg-info" not in str(path)
    }


def packages() -> dict[str, set[str]]:
    """By the folder that holds them in the checkout."""
    core = {f"eagle3_serving/{name}" for name in files(ROOT / "eagle3_serving")}
    return {".": core, "plugins": files(ROOT / "plugins")}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The sdist and the wheel, of sources in which somebody has worked."""
    sources = copy_sources(tmp_path_factory.mktemp("built") / "sources")
    for left in (
        "eagle3_serving/__pycache__/x.pyc",
        "build/lib/eagle3_serving/stale.py",
        "runs/a.json",
        "dist/old.whl",
    ):
        (sources / left).parent.mkdir(parents=True, exist_ok=True)
        (sources / left).write_text("left behind")
    return build(sources, sources.parent / "out")


def test_the_wheel_holds_the_packages_and_the_drafter(built: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(built[1]) as wheel:
        names = {name for name in wheel.namelist() if not name.endswith("/")}
    about = {f"{INFO}/{name}" for name in ("METADATA", "WHEEL", "RECORD", "entry_points.txt", "top_level.txt")}
    drafter = {f"{DATA}/{DRAFTER}/{name}" for name in files(ROOT / DRAFTER)}
    assert names == set().union(*packages().values()) | drafter | about | {f"{INFO}/licenses/LICENSE"}
    assert {"eagle3_serving/py.typed", "eagle3_vllm/py.typed", "eagle3_sglang/py.typed"} <= names
    assert "eagle3_serving/demo_prompts.jsonl" in names
    assert built[1].stat().st_size < LIMIT


def test_the_sdist_holds_what_the_wheel_is_made_from(built: tuple[Path, Path]) -> None:
    with tarfile.open(built[0]) as sdist:
        names = {member.name.partition("/")[2] for member in sdist if member.isfile()}
    generated = {name for name in names if name.startswith("eagle3_serving.egg-info/")} | {"PKG-INFO", "setup.cfg"}
    ours = {str(Path(folder) / name) for folder, found in packages().items() for name in found}
    ours |= {f"{DRAFTER}/{name}" for name in files(ROOT / DRAFTER)}
    ours |= {"pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff"}
    assert names - generated == ours
    assert built[0].stat().st_size < LIMIT


def test_the_metadata_says_what_the_sources_say(built: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(built[1]) as wheel:
        about = email.message_from_bytes(wheel.read(f"{INFO}/METADATA"))
    assert (about["Name"], about["Version"]) == ("eagle3-serving", __version__)
    assert (about["License-Expression"], about["Requires-Python"]) == ("Apache-2.0", ">=3.11")
    assert {"vllm", "sglang", "demo", "train", "bench", "embedded"} <= set(about.get_all("Provides-Extra", []))
    assert "file:" not in " ".join(about.get_all("Requires-Dist", []))
