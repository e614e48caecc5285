"""Troubleshooting by message: what operations.md quotes the code says, and what the plugins say operations.md explains."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LOGGED = re.compile(r"(?:logger|log)\.(?:info|warning|error)|say|say_once|stop|end|InputError|CheckError")


def quoted() -> list[str]:
    """The messages of the tables of operations.md."""
    text = (ROOT / "docs" / "operations.md").read_text().partition("## By message")[2]
    return re.findall(r"^\| `([^`]+)` \|", text, re.MULTILINE)


def texts(node: ast.AST) -> Iterator[str]:
    """Every text in a piece of code, what is filled in as `...`."""
    for one in ast.walk(node):
        if isinstance(one, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "..." for part in one.values)
        elif isinstance(one, ast.Constant) and isinstance(one.value, str):
            yield re.sub(r"%[-\d.]*[sdf]", "...", one.value)


@pytest.fixture(scope="module")
def sayings() -> set[str]:
    folders = (ROOT / "plugins", ROOT / "eagle3_serving")
    return {text for folder in folders for path in folder.rglob("*.py") for text in texts(ast.parse(path.read_text()))}


@pytest.mark.parametrize("message", quoted())
def test_a_message_is_one_that_the_code_says(message: str, sayings: set[str]) -> None:
    assert any(message in saying for saying in sayings)


def said_by_the_plugins() -> dict[str, str]:
    """What they log or end with, and where; what is filled in entirely (`eagle3: ...`) is another's message."""
    found = {}
    for path in sorted((ROOT / "plugins").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and LOGGED.fullmatch(ast.unparse(node.func)) and node.args:
                message = node.args[1] if ast.unparse(node.func) == "say_once" else node.args[0]
                # of texts put together the whole, which the walk meets first
                text = next(texts(message), "").removeprefix("eagle3: ")
                if re.search(r"[a-z]{3}", text.replace("...", "")):
                    found[text] = f"{path.name}:{node.lineno}"
    return found


def test_every_line_of_the_plugins_is_explained() -> None:
    said, explained = said_by_the_plugins(), quoted()
    assert len(said) > 20
    unexplained = {text: where for text, where in said.items() if not any(message in text for message in explained)}
    assert not unexplained


def test_the_metrics_are_those_of_the_code(sayings: set[str]) -> None:
    watched = (ROOT / "docs" / "operations.md").read_text().partition("## What happens")[0]
    names = re.findall(r"`((?:vllm|eagle3):\w+)`", watched)
    assert len(names) > 10
    code = " ".join(sayings)
    for name in names:
        ours = name.removesuffix("_total")
        assert ours in code or f"{ours.removeprefix('vllm:eagle3_')}" in code, name
