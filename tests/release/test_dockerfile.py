"""The image, stage by stage, as far as it goes without a Docker engine: what a real build would add is the base images
and the dependencies of the engines, which they bring."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from packages import ROOT, Fresh, distribution_of, environment, environment_of, fresh, packages_of

LINES = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if line and not line.startswith("#")]


def arguments(instruction: str) -> list[str]:
    return [line.partition(" ")[2] for line in LINES if line.startswith(f"{instruction} ")]


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Fresh:
    """The last stage: exactly the files that are copied, then the file's own pip, dependencies left to the base."""
    folder = tmp_path_factory.mktemp("image")
    made, source = fresh(folder, packages_of(Path(sys.prefix))), folder / "src"
    for line in arguments("COPY"):
        *names, target = line.split()
        for name in names:
            place = source / target / (name if target.endswith("./") else "")
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, place, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
            else:
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, place)
    [run] = arguments("RUN")
    pip = shlex.split(run.partition("&&")[0])
    assert pip[:3] == ["PIP_BREAK_SYSTEM_PACKAGES=1", "python3", "-m"] and pip[-1] == "."
    command = [str(made.bin / "python"), *pip[2:-1], "--no-deps", "--no-index", "--no-build-isolation", "."]
    done = subprocess.run(command, cwd=source, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    shutil.rmtree(source)  # nothing may point back at it
    return made


def test_the_pip_line_gives_the_commands_and_both_plugins(image: Fresh) -> None:
    code = """
import eagle3_serving, importlib.metadata, json
groups = ("vllm.general_plugins", "sglang.srt.plugins")
points = [point.load().__module__ for group in groups for point in importlib.metadata.entry_points(group=group, name="eagle3")]
print(json.dumps([points, eagle3_serving.__file__]))
"""
    points, file = json.loads(image.python(code))
    assert points == ["eagle3_vllm", "eagle3_sglang"]
    assert Path(file).is_relative_to(image.packages)
    assert image.run("eagle3", "--help").returncode == 0
    assert (image.packages / "eagle3_serving" / "demo_prompts.jsonl").is_file()


def test_what_is_copied_is_not_ignored() -> None:
    ignored = set((ROOT / ".dockerignore").read_text().split())
    copied = {name for line in arguments("COPY") for name in line.split()[:-1]}
    assert copied and all((ROOT / name).exists() for name in copied)
    assert not copied & ignored
    assert {".git", ".venv", ".venv-sglang", "tests", "benchmarks", "runs", "**/__pycache__"} <= ignored


def test_a_stage_for_each_engine_that_can_be_asked_for() -> None:
    stages = dict(reversed(line.split(" AS ")) for line in arguments("FROM") if " AS " in line)
    assert set(stages) == {"vllm", "sglang"}
    assert arguments("ARG") == ["ENGINE=vllm"] and arguments("FROM")[-1] == "${ENGINE}"


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_the_bases_are_what_we_test_and_their_entry_is_there(engine: str) -> None:
    [base] = [line for line in arguments("FROM") if line.endswith(f" AS {engine}")]
    assert f":v{distribution_of(engine).version} " in base
    [entry] = [line for line in arguments("ENTRYPOINT") if engine in line]
    command, home = json.loads(entry), environment_of(engine)
    if command[0] == "vllm":
        assert (home / "bin" / "vllm").is_file()
    else:
        [module] = re.findall(r"-m (\S+)", " ".join(command))
        assert (packages_of(home) / module.replace(".", "/")).with_suffix(".py").is_file()
