"""The pages that are made from the code hold what the code has."""

import ast
import re
from pathlib import Path

import griffe
import pytest

from eagle3_serving.cli import exit_codes
from eagle3_serving.cli.main import build_parser
from scripts.site import api, commands, matrix, settings

ROOT = Path(__file__).resolve().parents[2]


def test_the_commands_page_has_every_flag() -> None:
    text = commands.page()
    for name, parser in commands.subparsers(build_parser()).items():
        assert f"## eagle3 {name}\n" in text
        for action in parser._actions:
            for flag in action.option_strings:
                assert re.search(rf"`[^`\n]*{re.escape(flag)}\b", text), (name, flag)


def test_the_exit_codes_are_those_of_the_code() -> None:
    said = re.findall(r"^\| (\d+) \| (.*) \|$", commands.page(), re.MULTILINE)
    assert {int(code): meaning for code, meaning in said} == exit_codes.MEANINGS


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


@pytest.fixture(scope="module")
def core() -> griffe.Module:
    loaded = griffe.load("eagle3_serving", search_paths=[str(ROOT)], submodules=True)
    assert isinstance(loaded, griffe.Module)
    return loaded


def test_what_is_shown_of_the_api_says_what_it_is(core: griffe.Module) -> None:
    """Functions, classes and their public methods: none without a docstring, which would not be shown."""
    mute = []
    for name in api.PACKAGES:
        for path in api.members(name):
            shown = core[path.removeprefix("eagle3_serving.")]
            methods = shown.members.values() if shown.is_class else ()
            mute += [one.path for one in (shown, *methods) if _to_be_shown(one) and not one.docstring]
    assert not mute


def _to_be_shown(one: griffe.Object | griffe.Alias) -> bool:
    return (one.is_class or one.is_function) and not one.name.startswith("_")


ONE = """
import pytest
@pytest.mark.supports('vllm', 'tree', 'flying')
def test_a() -> None: ...
def test_b() -> None: ...
"""


def test_only_what_a_test_asserts_is_supported(tmp_path: Path) -> None:
    folder = tmp_path / "tests"
    folder.mkdir()
    (folder / "test_one.py").write_text(ONE)
    [found] = matrix.marks(folder)
    assert found == ("vllm", "tree", "flying", "tests/test_one.py::test_a")
    text = matrix.page([found], set())
    assert f"| flying | tree | {matrix.UNPROVEN} | {matrix.UNPROVEN} |" in text
    assert f"| {matrix.HEADS[0]} | tested: 1 features | {matrix.UNPROVEN} |" in text
    assert f"| {matrix.HEADS[2]} | {matrix.UNPROVEN} | {matrix.UNPROVEN} |" in text
    assert "flying" not in matrix.page() and "| flying" not in matrix.page([], set())
    (folder / "test_one.py").write_text(ONE.replace("'vllm'", "'tgi'"))
    with pytest.raises(ValueError, match="tgi"):
        matrix.marks(folder)


def test_marks_stand_on_tests_of_real_engines_alone() -> None:
    assert {support.where.split("/")[1] for support in matrix.marks()} == {"engines"}


def test_a_gpu_has_run_what_its_rows_hold_a_step_of(tmp_path: Path) -> None:
    assert matrix.ran_on_a_gpu(tmp_path) == set()
    (tmp_path / "vllm.jsonl").write_text('{"engine": "A tree 16", "part": "start", "seconds": 27.0}\n')
    assert matrix.ran_on_a_gpu(tmp_path) == set()  # it started, and no step was measured
    (tmp_path / "sglang.jsonl").write_text('{"engine": "fixed", "event": "FAILED"}\n')
    (tmp_path / "vllm.jsonl").write_text('{"engine": "A chain 3", "ms_median": 7.8}\n')
    assert matrix.ran_on_a_gpu(tmp_path) == {("vllm", "chain")}


def test_a_version_is_tested_only_where_it_is_the_pinned_one() -> None:
    rows = [line for line in matrix.page().splitlines() if re.match(r"\| (vLLM|SGLang) \d", line)]
    assert len(rows) > 4
    assert sum("run on" in row for row in rows) == 2 == sum(matrix.UNPROVEN not in row for row in rows)
