"""The API reference: what each package of the core exports, with its docstrings, by mkdocstrings."""

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = {
    "tree": "Draft trees",
    "drafter": "The drafter",
    "checkpoint": "Checkpoints",
    "engine": "The embedded engine",
    "attention": "Attention over a prefix and a tree",
}


def page(name: str) -> str:
    source = ast.parse((ROOT / "eagle3_serving" / name / "__init__.py").read_text())
    summary = ast.get_docstring(source) or ""
    lines = [f"# {PACKAGES[name]}\n", f"`eagle3_serving.{name}`: {summary[0].lower()}{summary[1:]}\n"]
    return "\n".join([*lines, *(f"::: {path}\n" for path in exported(source))])


def exported(package: ast.Module) -> list[str]:
    """Dotted paths of what a package's `__init__` exports, each where it is defined: a function may be named as its module."""
    return [
        f"{node.module}.{alias.name}"
        for node in package.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if not alias.name.isupper()  # constants have no docstring
    ]
