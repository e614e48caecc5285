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
    package = f"eagle3_serving.{name}"
    summary = ast.get_docstring(ast.parse((ROOT / "eagle3_serving" / name / "__init__.py").read_text())) or ""
    return f"# {PACKAGES[name]}\n\n`{package}`: {summary[0].lower()}{summary[1:]}\n\n::: {package}\n    options:\n      show_root_heading: false\n      show_root_toc_entry: false\n      show_docstring_description: true\n"
