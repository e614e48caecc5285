"""Wheels for a machine without a network: downloaded here for its Python and platform, carried in parcels, installed there.

`download` fetches wheels (never a source package: building it would run its code here) and tells which needs are not met
by them and by what the other machine has. `install` checks every hash against the list that came along and installs with
pip, without index and without dependencies, into a folder of its own: what the machine has stays as it is.
"""

import argparse
import email.parser
import hashlib
import json
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.gpu.parcels import MIB, ParcelError, sha256_of, split

LIST = "wheels.json"
# pip matches the number exactly, and a wheel for an older C library runs on a newer one
GLIBC = range(5, 40)
_EXAMPLES = """examples:
  python -m benchmarks.gpu.offline_install download flashinfer-python==0.6.13 apache-tvm-ffi --python 3.12 \\
      --have installed.txt --out carry/wheels --parcels carry/parcels
  (carry the parcels; there, for each: python -m benchmarks.gpu.parcels take parcels/001 --store STORE)
  python -m benchmarks.gpu.parcels join --store STORE --out INPUTS
  python -m benchmarks.gpu.offline_install install INPUTS/wheels --target INPUTS/site
  PYTHONPATH=INPUTS/site python -m benchmarks.gpu --plan attention --out DIR

installed.txt is what `pip list --format=freeze` printed on the other machine.
"""


def platforms(machine: str, glibc: int) -> list[str]:
    """Tags of wheels that run on a Linux of this processor with the C library 2.`glibc`."""
    tags = [f"manylinux_2_{n}_{machine}" for n in GLIBC if n <= glibc]
    old = {17: "manylinux2014", 12: "manylinux2010", 5: "manylinux1"}
    return [*reversed(tags), *(f"{name}_{machine}" for n, name in old.items() if n <= glibc), f"linux_{machine}"]


def download(
    requirements: Sequence[str], out: Path, python: str, machine: str, glibc: int, deps: bool, have: dict[str, str]
) -> list[Path]:
    """The wheels in `out`, those left out that the other machine `have`s. Raises ParcelError where pip cannot."""
    out.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--only-binary", ":all:", "--dest", str(out)]
    command += ["--python-version", python, "--implementation", "cp"]
    command += [part for tag in platforms(machine, glibc) for part in ("--platform", tag)]
    command += [] if deps else ["--no-deps"]
    done = subprocess.run([*command, *requirements], capture_output=True, text=True, check=False)
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        raise ParcelError(f"pip download failed: {(errors or done.stderr.strip().splitlines() or ['no word'])[-1]}")
    asked = {_plain(requirement) for requirement in requirements}
    for wheel in sorted(out.glob("*.whl")):
        if _plain(wheel.name) in have and _plain(wheel.name) not in asked:
            wheel.unlink()
    wheels = sorted(out.glob("*.whl"))
    doubled = [wheel.name for wheel in wheels if [_plain(w.name) for w in wheels].count(_plain(wheel.name)) > 1]
    if doubled:
        raise ParcelError(f"{out} holds several versions: {', '.join(doubled)}; empty it and download again")
    listed = {wheel.name: sha256_of(wheel) for wheel in wheels}
    (out / LIST).write_text(json.dumps(listed, indent=1) + "\n", encoding="utf-8")
    return wheels


def _plain(text: str) -> str:
    """The normalised name of a wheel's file or of a requirement."""
    name = text.split("-", 1)[0] if text.endswith(".whl") else text
    for mark in ("[", "=", "<", ">", "!", "~", ";", " ", "@"):
        name = name.split(mark, 1)[0]
    return name.strip().lower().replace("_", "-").replace(".", "-")


def read_have(path: Path) -> dict[str, str]:
    """name -> version of lines NAME==VERSION; other lines are passed over."""
    lines = (line.strip().partition("==") for line in path.read_text(encoding="utf-8").splitlines())
    return {_plain(name): version for name, mark, version in lines if mark}


def unmet(wheels: Sequence[Path], have: dict[str, str], python: str, machine: str) -> list[str]:
    """Needs of the wheels that neither a wheel nor `have` meets, one line each."""
    from packaging.requirements import Requirement

    known = {**have}
    metadata = {wheel: _metadata(wheel) for wheel in wheels}
    known |= {_plain(about["Name"]): about["Version"] for about in metadata.values()}
    environment = {"python_version": python, "sys_platform": "linux", "platform_system": "Linux", "extra": ""}
    environment |= {"platform_machine": machine, "os_name": "posix", "implementation_name": "cpython"}
    environment |= {"python_full_version": f"{python}.0", "platform_python_implementation": "CPython"}
    missing = []
    for about in metadata.values():
        for text in about.get_all("Requires-Dist") or []:
            need = Requirement(text)
            if need.marker is not None and not need.marker.evaluate(environment):
                continue
            version = known.get(_plain(need.name))
            if version is None or not need.specifier.contains(version, prereleases=True):
                missing.append(f"{about['Name']} needs {need.name}{need.specifier}; there is {version or 'none'}")
    return missing


def _metadata(wheel: Path) -> "email.message.Message[str, str]":
    with zipfile.ZipFile(wheel) as archive:
        name = next(n for n in archive.namelist() if n.endswith(".dist-info/METADATA") and n.count("/") == 1)
        return email.parser.Parser().parsestr(archive.read(name).decode("utf-8", "replace"))


def install(wheels: Path, target: Path) -> int:
    """All wheels of the list into `target`, which is made anew; how many. Raises ParcelError on a wrong hash."""
    try:
        listed: dict[str, str] = json.loads((wheels / LIST).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ParcelError(f"{wheels / LIST} cannot be read ({error}): join the parcels again") from None
    for name, digest in listed.items():
        path = wheels / name
        if Path(name).name != name or not path.is_file() or sha256_of(path) != digest:
            raise ParcelError(f"{path} is missing or damaged: join the parcels again")
    stamp = hashlib.sha256(json.dumps([sys.version, listed], sort_keys=True).encode()).hexdigest()
    if (target / ".stamp").is_file() and (target / ".stamp").read_text() == stamp:
        return len(listed)
    shutil.rmtree(target, ignore_errors=True)
    # not compiled: most of a large package is never imported
    options = ["--quiet", "--no-index", "--no-deps", "--no-compile", "--no-cache-dir", "--target", str(target)]
    command = [sys.executable, "-m", "pip", "install", *options, *(str(wheels / name) for name in sorted(listed))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ParcelError(f"pip install failed: {(done.stderr.strip().splitlines() or ['no word'])[-1]}")
    (target / ".stamp").write_text(stamp)
    return len(listed)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu.offline_install",
        description=__doc__,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    one = verbs.add_parser("download", help="here: wheels for the other machine")
    one.add_argument("requirements", nargs="+", metavar="NAME==VERSION")
    one.add_argument("--out", type=Path, required=True, help="folder of the wheels")
    one.add_argument("--python", default="3.12", help="the other machine's Python (default 3.12)")
    one.add_argument("--machine", default="x86_64", help="its processor, as uname -m says (default x86_64)")
    one.add_argument("--glibc", type=int, default=35, help="its C library 2.N, as ldd --version says (default 35)")
    one.add_argument("--deps", action="store_true", help="with all that they need and the other machine has not")
    one.add_argument("--have", type=Path, help="what it has, as pip list --format=freeze says")
    one.add_argument("--parcels", type=Path, help="also split them into this folder")
    one.add_argument("--size", type=float, default=40, help="MiB of a parcel (default 40)")
    one = verbs.add_parser("install", help="there: joined wheels into a folder of their own")
    one.add_argument("wheels", type=Path)
    one.add_argument("--target", type=Path, required=True, help="put it on PYTHONPATH")
    args = parser.parse_args(arguments)
    try:
        if args.verb == "install":
            print(f"{install(args.wheels, args.target)} packages; export PYTHONPATH={args.target}")
            return 0
        have = read_have(args.have) if args.have else {}
        wheels = download(args.requirements, args.out, args.python, args.machine, args.glibc, args.deps, have)
        for wheel in wheels:
            print(f"{wheel.stat().st_size / MIB:8.1f} MiB  {wheel.name}")
        for line in unmet(wheels, have, args.python, args.machine):
            print(f"not met: {line}")
        if args.parcels:
            parcels = split([args.out], args.parcels, int(args.size * MIB))
            print(f"{len(parcels)} parcels in {args.parcels}")
    except (ParcelError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
