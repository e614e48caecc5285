"""The set-up's promise: whole or not stamped, and instant once it is whole. Its installers are stood in for."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "setup_env.py"
NAMES = ("main", "sglang")


class Project:
    """A copy of the set-up in an empty project; `steps` records what it would have installed."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        spec = importlib.util.spec_from_file_location("setup_env_under_test", SCRIPT)
        assert spec and spec.loader
        self.module: ModuleType = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(__import__("sys").modules, spec.name, self.module)
        spec.loader.exec_module(self.module)
        self.root = root
        self.steps: list[tuple[str, ...]] = []
        self.failing = ""
        replaced = {
            "ROOT": root,
            "has_pip": lambda python: True,
            "install_torch": lambda python: self.step("torch"),
            "run": self.step,
        }
        for name, value in replaced.items():
            monkeypatch.setattr(self.module, name, value)
        for environment in self.module.ENVIRONMENTS.values():
            for name in environment.inputs:
                (root / name).parent.mkdir(exist_ok=True)
                (root / name).write_text("one")
            (environment.directory / "lib" / "python3" / "site-packages").mkdir(parents=True)
            environment.python.parent.mkdir()
            environment.python.touch()
        starter = root / self.module.CPU_KERNELS / "starter.py"
        starter.parent.mkdir(parents=True)
        starter.touch()

    def step(self, *command: str) -> bool:
        self.steps.append(command)
        return not self.failing or self.failing not in command

    def make(self, *names: str) -> tuple[int, int]:
        """The exit code, and how many steps were taken."""
        before = len(self.steps)
        return self.module.main(list(names)), len(self.steps) - before


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    return Project(tmp_path, monkeypatch)


@pytest.mark.parametrize("name", NAMES)
def test_a_second_run_does_nothing(name: str, project: Project) -> None:
    assert project.make(name) == (0, 3)
    assert project.make(name) == (0, 0)


def test_the_environments_are_made_apart(project: Project) -> None:
    assert project.make() == (0, 3)
    assert not project.module.ENVIRONMENTS["sglang"].stamp.exists()
    assert project.make("main", "sglang") == (0, 3)


@pytest.mark.parametrize(
    "name, changed",
    [
        ("main", "pyproject.toml"),
        ("main", "requirements/cpu.txt"),
        ("main", "requirements/overrides.txt"),
        ("sglang", "pyproject.toml"),
        ("sglang", "requirements/sglang-cpu.txt"),
    ],
)
def test_a_changed_input_installs_again(name: str, changed: str, project: Project) -> None:
    project.make(name)
    (project.root / changed).write_text("two")
    assert project.make(name) == (0, 3)
    assert project.make(name) == (0, 0)


def test_a_failed_step_leaves_no_stamp(project: Project) -> None:
    project.failing = "torch"
    assert project.make() == (1, 2)
    assert not project.module.ENVIRONMENTS["main"].stamp.exists()
    project.failing = ""
    assert project.make() == (0, 3)


def test_a_failed_update_does_not_leave_the_old_stamp(project: Project) -> None:
    project.make()
    (project.root / "pyproject.toml").write_text("two")
    project.failing = "torch"
    assert project.make()[0] == 1
    project.failing = ""
    (project.root / "pyproject.toml").write_text("one")  # back as it was, over an environment half updated
    assert project.make() == (0, 3)


def test_torch_is_there_before_anything_that_needs_it(project: Project) -> None:
    project.make()
    engine = next(index for index, step in enumerate(project.steps) if project.module.VLLM in step)
    assert project.steps.index(("torch",)) < engine
    assert project.module.TORCH in project.steps[engine]  # pinned there too, or the resolver may choose another


def test_sglang_is_installed_without_its_list_and_finds_the_stand_in_kernels(project: Project) -> None:
    project.make("sglang")
    [engine] = [step for step in project.steps if project.module.SGLANG in step]
    assert "--no-deps" in engine
    [path_file] = project.root.glob(".venv-sglang/lib/python3/site-packages/*.pth")
    assert path_file.read_text() == f"{project.root / project.module.CPU_KERNELS}\nimport starter\n"


def test_an_unknown_environment_is_named(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    assert project.make("tpu") == (2, 0)
    assert "'tpu'" in capsys.readouterr().err
