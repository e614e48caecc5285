"""The documentation: it builds strictly, and what it quotes is there."""

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from eagle3_sglang.seams import SEAMS as SGLANG_SEAMS
from eagle3_vllm.seams import SEAMS as VLLM_SEAMS

from eagle3_serving.cli.main import build_parser
from scripts.site import api, commands, matrix, settings

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"


def build(docs: Path, site: Path) -> subprocess.CompletedProcess[str]:
    config = (ROOT / "mkdocs.yml").read_text()
    for name, folder in (("docs_dir: docs", f"docs_dir: {docs}"), ("site_dir: site", f"site_dir: {site}")):
        assert name in config
        config = config.replace(name, folder)
    # beside the real one, since its paths are relative
    path = ROOT / f".mkdocs-{os.getpid()}.yml"
    path.write_text(config)
    try:
        command = [sys.executable, "-m", "mkdocs", "build", "--config-file", str(path)]
        environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    finally:
        path.unlink()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = build(DOCS, folder)
    assert done.returncode == 0, done.stderr
    return folder


def test_it_builds_strictly_and_asks_nobody_else(site: Path) -> None:
    pages = sorted(site.rglob("index.html"))
    assert len(pages) > 20
    for page in pages:
        fetched = re.findall(r'<(?:script|img|iframe)[^>]*\ssrc="(https?:[^"]+)"', page.read_text())
        fetched += re.findall(r'<link[^>]*rel="stylesheet"[^>]*href="(https?:[^"]+)"', page.read_text())
        assert not fetched, page


def test_what_is_exported_stands_in_the_api_with_its_words(site: Path) -> None:
    for name in api.PACKAGES:
        text = (site / "api" / name / "index.html").read_text()
        exported = api.exported(ast.parse((ROOT / "eagle3_serving" / name / "__init__.py").read_text()))
        assert exported and not [path for path in exported if f'id="{path}"' not in text]


@pytest.mark.parametrize("fault", ["[gone](gone.md)", "[gone](cli.md#gone)"])
def test_a_dead_link_fails_the_build(fault: str, tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    shutil.copytree(DOCS, docs)
    with (docs / "index.md").open("a") as page:
        page.write(f"\n{fault}\n")
    done = build(docs, tmp_path / "site")
    assert done.returncode != 0 and "gone" in done.stderr


def test_the_commands_page_has_every_flag() -> None:
    text = commands.page()
    for name, parser in commands.subparsers(build_parser()).items():
        assert f"## eagle3 {name}\n" in text
        for action in parser._actions:
            for flag in action.option_strings:
                assert re.search(rf"`[^`\n]*{re.escape(flag)}\b", text), (name, flag)


def test_the_settings_page_has_every_variable() -> None:
    text = settings.page()
    read = set()
    for path in (ROOT / "plugins").rglob("settings.py"):
        read |= {node.value for node in ast.walk(ast.parse(path.read_text())) if _is_variable(node)}
    assert len(read) > 8
    assert not [name for name in read if f"`{name}`" not in text]


def _is_variable(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Constant) and isinstance(node.value, str) and bool(re.fullmatch(r"EAGLE3_\w+", node.value))
    )


def test_only_what_a_test_asserts_is_supported(tmp_path: Path) -> None:
    folder = tmp_path / "tests"
    folder.mkdir()
    (folder / "test_one.py").write_text(
        "import pytest\n@pytest.mark.supports('vllm', 'tree', 'flying')\ndef test_a() -> None: ...\ndef test_b() -> None: ...\n"
    )
    [found] = matrix.marks(folder)
    assert found == ("vllm", "tree", "flying", "tests/test_one.py::test_a")
    assert "| flying | tree |  |  |" in matrix.page([found])
    assert "flying" not in matrix.page()
    (folder / "test_one.py").write_text(
        "import pytest\n@pytest.mark.supports('tgi', 'tree', 'x')\ndef test_a() -> None: ...\n"
    )
    with pytest.raises(ValueError, match="tgi"):
        matrix.marks(folder)


def test_marks_stand_on_tests_of_real_engines_alone() -> None:
    assert {support.where.split("/")[1] for support in matrix.marks()} == {"engines"}


@pytest.mark.parametrize("seam", [*VLLM_SEAMS, *SGLANG_SEAMS], ids=lambda seam: seam.target)
def test_a_seam_is_held_by_a_test_that_is_there(seam: object) -> None:
    assert (ROOT / seam.held).is_file()  # type: ignore[attr-defined]


def test_sglangs_hooks_are_those_of_the_register() -> None:
    source = (ROOT / "plugins" / "eagle3_sglang" / "hooks.py").read_text()
    names = dict(re.findall(r'^(_[A-Z]+) = "(sglang[\w.]+)"$', source, re.MULTILINE))
    [hooks] = [
        node.value
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "hooks" and isinstance(node.value, ast.Dict)
    ]
    targets = {eval(ast.unparse(key), {}, names) for key in hooks.keys if key is not None}
    assert targets == {seam.target for seam in SGLANG_SEAMS if seam.target.startswith("sglang.")}


def quoted() -> list[str]:
    """The messages of the tables of operations.md."""
    text = (DOCS / "operations.md").read_text().partition("## By message")[2]
    return re.findall(r"^\| `([^`]+)` \|", text, re.MULTILINE)


@pytest.fixture(scope="module")
def sayings() -> list[str]:
    """Every text of the code, what is filled in as `...`."""
    found = []
    for folder in ("plugins", "eagle3_serving"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.JoinedStr):
                    parts = [part.value if isinstance(part, ast.Constant) else "..." for part in node.values]
                    found.append("".join(map(str, parts)))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.append(re.sub(r"%[-\d.]*[sdf]", "...", node.value))
    return found


def test_there_are_messages() -> None:
    assert len(quoted()) > 20


@pytest.mark.parametrize("message", quoted())
def test_a_message_is_one_that_the_code_says(message: str, sayings: list[str]) -> None:
    assert any(message in saying for saying in sayings)
