"""The wheel where no checkout is: its commands, the demo in real vLLM servers, and the plugins as the engines load them.

The new environment finds the engines in the project's own by a .pth file; the project's copy there is shadowed.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from packages import Fresh, build, copy_sources, environment_of, fresh, install, packages_of

from eagle3_serving import __version__

DRAFTER = Path("share/eagle3-serving/checkpoints/smollm2-135m-instruct")
PACKAGES = ("eagle3_serving", "eagle3_vllm", "eagle3_sglang")
# how each engine loads plugins, and what of ours it then holds
VLLM = """
from vllm.plugins import load_general_plugins
load_general_plugins()
from vllm import ModelRegistry
held = [repr(model) for model in ModelRegistry.models.values()]
"""
SGLANG = """
from sglang.srt.plugins import load_plugins
load_plugins()
from sglang.srt.plugins.hook_registry import HookRegistry
held = [hook.__module__ for hooks in HookRegistry._hooks.values() for _, hook, _ in hooks]
"""
SAID = """
import importlib.metadata, json, sys
points = [point for point in importlib.metadata.entry_points(group="{group}") if point.name == "eagle3"]
ours = [line for line in held if "{plugin}" in line]
print(json.dumps({{"points": len(points), "file": sys.modules["{plugin}"].__file__, "ours": ours}}))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    return build(copy_sources(folder / "sources"), folder / "out")[1]


@pytest.fixture(scope="module")
def beside(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Fresh]:
    """Makes an environment with the wheel and, by a .pth file, the engine of another environment."""

    def make(engine: Path) -> Fresh:
        made = fresh(tmp_path_factory.mktemp("fresh"), packages_of(engine))
        for path_file in packages_of(engine).glob("eagle3-stand-ins.pth"):  # without them SGLang needs a GPU
            shutil.copy(path_file, made.packages)
        install(made, wheel)
        return made

    return make


@pytest.fixture(scope="module")
def installed(beside: Callable[[Path], Fresh]) -> Fresh:
    return beside(environment_of("vllm"))


def test_what_runs_is_the_wheels_copy(installed: Fresh) -> None:
    files = installed.python(
        f"import {', '.join(PACKAGES)}; print({', '.join(f'{name}.__file__' for name in PACKAGES)})"
    )
    assert all(Path(file).is_relative_to(installed.packages) for file in files.split())
    assert installed.run("eagle3", "--version").stdout == f"eagle3-serving {__version__}\n"
    assert "demo" in installed.run("eagle3", "--help").stdout


def test_the_drafter_that_ships_is_checked_and_converted(installed: Fresh) -> None:
    drafter = installed.folder / DRAFTER
    checked = installed.run("eagle3", "check", drafter, "--json")
    assert checked.returncode == 0, checked.stderr
    assert json.loads(checked.stdout)["ok"] is True
    converted = installed.run("eagle3-convert", drafter, "converted", "--to", "universal")
    assert converted.returncode == 0, converted.stderr
    assert (installed.home / "converted" / "model.safetensors").stat().st_size > 10e6


@pytest.mark.engine
def test_the_demo_runs_from_the_wheel(installed: Fresh, target_dir: Path) -> None:
    command = ("eagle3", "demo", "--target", target_dir, "--k", "2", "--max-tokens", "4", "--json")
    done = installed.run(*command, timeout=400)
    assert done.returncode == 0, done.stderr[-3000:]
    said = json.loads(done.stdout)
    assert said["identical"] is True
    assert said["accepted_length"] > 1.2


@pytest.mark.engine
def test_vllm_loads_the_wheels_plugin(installed: Fresh) -> None:
    said = json.loads(installed.python(VLLM + SAID.format(group="vllm.general_plugins", plugin="eagle3_vllm")))
    assert said["points"] == 1 and said["ours"]
    assert Path(said["file"]).is_relative_to(installed.packages)


@pytest.mark.engine
def test_sglang_loads_the_wheels_plugin(beside: Callable[[Path], Fresh]) -> None:
    installed = beside(environment_of("sglang"))
    said = json.loads(installed.python(SGLANG + SAID.format(group="sglang.srt.plugins", plugin="eagle3_sglang")))
    assert said["points"] == 1 and said["ours"]
    assert Path(said["file"]).is_relative_to(installed.packages)
