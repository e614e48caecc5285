"""The rules that make the project a house."""

import ast
import re
import shutil
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from eagle3_serving import __version__

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted(
    path
    for folder in ("eagle3_serving", "plugins", "benchmarks", "tests", "scripts")
    for path in (ROOT / folder).rglob("*.py")
)


def imports(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return names


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_file_outgrows_its_concept(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 500


def module_name(path: Path) -> str:
    relative = path.relative_to(ROOT / "plugins" if path.is_relative_to(ROOT / "plugins") else ROOT)
    return ".".join(relative.with_suffix("").parts).removesuffix(".__init__")


def imported_modules(tree: ast.AST, names: set[str], late: bool) -> set[str]:
    """Of `names` those that a module imports when it is imported or, with `late`, ever; for a type checker alone counts."""
    found: set[str] = set()
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            # a submodule, or what a module holds
            of = {alias.name: f"{node.module}.{alias.name}" for alias in node.names}
            found |= {inner if inner in names else node.module for inner in of.values()}
        if late or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            waiting += ast.iter_child_nodes(node)
    return found & names


def circle(sources: dict[str, str], late: bool) -> list[str]:
    """Modules, by name and text, each of which imports the one before it; [] where there is no such circle."""
    graph = {name: imported_modules(ast.parse(text), set(sources), late) - {name} for name, text in sources.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


@pytest.mark.parametrize("late", [False, True], ids=["when imported", "ever"])
def test_no_modules_import_each_other(late: bool) -> None:
    """Late imports too: one that would close a circle stands in a function only because of it."""
    assert not circle({module_name(path): path.read_text() for path in SOURCES}, late)


def test_a_circle_would_be_found() -> None:
    one = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from a import two"
    late = "def f():\n    from a.one import x"
    assert set(circle({"a": "", "a.one": one, "a.two": "import a.one"}, late=False)) == {"a.one", "a.two"}
    assert not circle({"a": "", "a.one": one, "a.two": late}, late=False)
    assert set(circle({"a": "", "a.one": one, "a.two": late}, late=True)) == {"a.one", "a.two"}


def test_the_core_imports_no_engine() -> None:
    core = [path for path in SOURCES if path.is_relative_to(ROOT / "eagle3_serving")]
    assert core
    for path in core:
        assert not {name.split(".")[0] for name in imports(path)} & {"vllm", "sglang"}, path


def test_what_is_private_to_sglang_stands_in_one_file() -> None:
    touching = {
        path.stem
        for path in (ROOT / "plugins" / "eagle3_sglang").glob("*.py")
        if any(name.split(".")[0] == "sglang" for name in imports(path))
    }
    assert touching == {"compat", "hooks"}  # hooks: the public registry, and the version


def test_the_tree_knows_tensors_not_models() -> None:
    for path in (ROOT / "eagle3_serving" / "tree").glob("*.py"):
        ours = {name for name in imports(path) if name.startswith("eagle3_serving")}
        assert all(name.startswith("eagle3_serving.tree") for name in ours), path


def test_the_dockerfile_passes_its_linter() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([hadolint, ROOT / "Dockerfile"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def tracked() -> list[Path]:
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout: what is tracked is not known")
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    return [ROOT / name for name in done.stdout.split("\0") if name and (ROOT / name).is_file()]


def test_no_file_names_a_machine() -> None:
    # written in pieces, or this file would name them itself
    folders, hosts = "|".join(("work", "opt", "tmp", "root")), "|".join(("pypi", "pythonhosted", "pytorch"))
    machine = re.compile(rf"(?<![\w.~/}}-])/(?:{folders})/|\.\./shar(?:ed)|(?:{hosts})\.org")
    found = []
    for path in tracked():
        # prompts may speak of any path
        if path.suffix in {".jsonl", ".safetensors", ".png"}:
            continue
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
            if match := machine.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {match[0]}")
    assert not found


def test_the_image_runs_as_nobody_special() -> None:
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    users = [line.split()[1] for line in lines if line.startswith("USER ")]
    assert users and users[-1] not in {"root", "0"}
    images = [line.split()[1] for line in lines if line.startswith("FROM ") and "$" not in line]
    assert images and all(":" in image and not image.endswith(":latest") for image in images)


def test_the_changelog_knows_this_version() -> None:
    assert f"## [{__version__}]" in (ROOT / "CHANGELOG.md").read_text()


def test_help_has_examples() -> None:
    for command in ("demo", "fetch-target", "eval", "bench", "tune", "train", "convert", "check"):
        done = subprocess.run(
            [sys.executable, "-m", "eagle3_serving.cli.main", command, "--help"],
            capture_output=True,
            text=True,
            check=True,
        )
        assert "examples:" in done.stdout


def test_no_two_test_files_have_one_name() -> None:
    """They have no packages, so that Python would take one for the other."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert len(names) == len(set(names))
