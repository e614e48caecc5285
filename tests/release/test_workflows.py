"""What only a code host runs is at least read here by its linters; and what it calls exists."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from packages import ROOT

from eagle3_serving import __version__

GITHUB = ROOT / ".github"
WORKFLOWS = sorted((GITHUB / "workflows").glob("*.yml"))
HERE = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # the linters, and ShellCheck for one of them
SCHEMAS = {
    "vendor.github-workflows": [*WORKFLOWS],
    "custom.github-workflows-require-timeout": [*WORKFLOWS],
    "vendor.dependabot": [GITHUB / "dependabot.yml"],
    "vendor.github-issue-config": [GITHUB / "ISSUE_TEMPLATE" / "config.yml"],
    "vendor.github-issue-forms": [
        GITHUB / "ISSUE_TEMPLATE" / f"{name}.yml" for name in ("bug", "checkpoint", "feature")
    ],
    "vendor.citation-file-format": [ROOT / "CITATION.cff"],
}
# faults that a reader passes over: a step that no job has, an unquoted variable, an action named by a tag that may move
BROKEN = """
name: broken
on: push
permissions: {}
jobs:
  one:
    runs-on: ubuntu-latest
    timeout-minutes: 5
    steps:
      - uses: pypa/gh-action-pypi-publish@v1
      - run: echo "${{ steps.nowhere.outputs.x }}" && rm $HOME/$1
"""


def lint(*command: str | Path) -> tuple[int, str]:
    words = [shutil.which(command[0], path=HERE) or str(command[0]), *map(str, command[1:])]
    done = subprocess.run(
        words, cwd=ROOT, env=os.environ | {"PATH": HERE}, capture_output=True, text=True, check=False, timeout=120
    )
    return done.returncode, done.stdout + done.stderr


def actionlints() -> list[str]:
    """jactionlint, actionlint's checks in a wheel, is in `dev`; the first of its name where somebody has it."""
    return ["jactionlint", *(["actionlint"] if shutil.which("actionlint", path=HERE) else [])]


def test_actionlint_finds_nothing() -> None:
    assert len(WORKFLOWS) == 4
    for linter in actionlints():
        assert lint(linter, *WORKFLOWS) == (0, "")


def test_zizmor_finds_nothing() -> None:
    code, said = lint("zizmor", "--offline", "--no-progress", "--quiet", "--persona", "pedantic", GITHUB)
    assert code == 0, said


def test_the_linters_find_faults(tmp_path: Path) -> None:
    broken = tmp_path / ".github" / "workflows" / "broken.yml"
    broken.parent.mkdir(parents=True)
    broken.write_text(BROKEN)
    for linter in actionlints():
        code, said = lint(linter, broken)
        assert code == 1 and "nowhere" in said and "SC2086" in said
    code, said = lint("zizmor", "--offline", "--no-progress", "--quiet", broken)
    assert code and "unpinned-uses" in said
    assert lint("check-jsonschema", "--builtin-schema", "vendor.citation-file-format", broken)[0] == 1


@pytest.mark.parametrize("schema", SCHEMAS)
def test_forms_follow_their_schemas(schema: str) -> None:
    assert all(path.is_file() for path in SCHEMAS[schema])
    code, said = lint("check-jsonschema", "--builtin-schema", schema, *SCHEMAS[schema])
    assert code == 0, said


def test_what_the_workflows_call_exists() -> None:
    called = "\n".join(path.read_text() for path in WORKFLOWS)
    targets = {name for line in re.findall(r"run: make (.+)", called) for name in line.split()}
    scripts = set(re.findall(r"python (scripts/\S+\.py)", called))
    folders = set(re.findall(r"(?<= )tests/[a-z/_]+(?:\.py)?", called)) | {"tests/plugins/vllm", "tests/plugins/sglang"}
    assert {"test", "demo", "setup"} <= targets and len(scripts) == 3 and "tests/release" in folders
    if not (ROOT / "mkdocs.yml").exists():
        targets -= {"docs"}
    made = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert targets <= made
    assert all((ROOT / name).exists() for name in scripts | folders)


def test_publishing_alone_may_speak_for_us() -> None:
    release = (GITHUB / "workflows" / "release.yml").read_text()
    [publish] = re.findall(r"^  publish:\n(?:    .*\n|\n)+", release, re.MULTILINE)
    assert release.count("id-token: write") == publish.count("id-token: write") == 1
    assert "checkout" not in publish and "run:" not in publish  # nothing of ours runs beside the token
    assert "secrets." not in release


def test_the_citation_is_of_this_version() -> None:
    assert f"\nversion: {__version__}\n" in (ROOT / "CITATION.cff").read_text()
