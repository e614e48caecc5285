"""The set-up's promise: whole or not stamped, and instant once it is whole. Its installers are stood in for."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "setup_env.py"


class Project:
    """A copy of the set-up in an empty project; `steps` records what it would have installed."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        spec = importlib.util.spec_from_file_location("setup_env_under_test", SCRIPT)
        assert spec and spec.loader
        self.module: ModuleType = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(self.module)
        self.root = root
        self.steps: list[tuple[str, ...]] = []
        self.failing = ""
        for name in self.module.INPUTS:
            (root / name).parent.mkdir(exist_ok=True)
            (root / name).write_text("one")
        replaced = {
            "ROOT": root,
            "VENV": root / ".venv",
            "PYTHON": root / ".venv" / "python",
            "STAMP": root / ".venv" / "stamp",
            "has_pip": lambda: True,
            "install_torch": lambda: self.step("torch"),
            "run": self.step,
        }
        for name, value in replaced.items():
            monkeypatch.setattr(self.module, name, value)
        (root / ".venv").mkdir()
        self.module.PYTHON.touch()

    def step(self, *command: str) -> bool:
        self.steps.append(command)
        return not self.failing or self.failing not in command

    def make(self) -> tuple[int, int]:
        """The exit code, and how many steps were taken."""
        before = len(self.steps)
        return self.module.main(), len(self.steps) - before


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    return Project(tmp_path, monkeypatch)


def test_a_second_run_does_nothing(project: Project) -> None:
    assert project.make() == (0, 3)
    assert project.make() == (0, 0)


@pytest.mark.parametrize("name", ["pyproject.toml", "requirements/cpu.txt", "requirements/overrides.txt"])
def test_a_changed_input_installs_again(name: str, project: Project) -> None:
    project.make()
    (project.root / name).write_text("two")
    assert project.make() == (0, 3)
    assert project.make() == (0, 0)


def test_a_failed_step_leaves_no_stamp(project: Project) -> None:
    project.failing = "torch"
    assert project.make() == (1, 2)
    assert not project.module.STAMP.exists()
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
