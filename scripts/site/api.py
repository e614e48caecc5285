"""The API reference: what each package of the core exports, with its docstrings, by mkdocstrings."""

import ast

from scripts.site.sources import ROOT

CORE = ROOT / "eagle3_serving"
PACKAGES = {
    "tree": "Draft trees",
    "drafter": "The drafter",
    "checkpoint": "Checkpoints",
    "engine": "The embedded engine",
    "attention": "Attention over a prefix and a tree",
    "train": "Training",
    "errors": "Errors",
}
# a package that exports nothing: what a program would call, where it is defined
LISTED = {
    "train": (
        "job.train",
        "job.fit",
        "options.TrainJob",
        "options.TrainOptions",
        "job.TrainedDrafter",
        "job.TrainedRun",
        "ttt.ttt_loss",
        "ttt.TTTLoss",
        "closed_form.closed_form_start",
        "calibration.calibrate",
    )
}
_TRAINING = "from prompts to a drafter. `eagle3 train` is `train` on the command line."


def page(name: str) -> str:
    summary = _TRAINING if name in LISTED else ast.get_docstring(_source(name)) or ""
    lines = [f"# {PACKAGES[name]}\n", f"`eagle3_serving.{name}`: {summary[:1].lower()}{summary[1:]}\n"]
    return "\n".join([*lines, *(f"::: {path}\n" for path in members(name))])


def members(name: str) -> list[str]:
    """Dotted paths of what stands on a page, each where it is defined: a function may be named as its module."""
    package = f"eagle3_serving.{name}"
    if name in LISTED:
        return [f"{package}.{path}" for path in LISTED[name]]
    body = _source(name).body
    exported = [
        f"{node.module}.{alias.name}"
        for node in body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if not alias.name.isupper()  # constants have no docstring
    ]
    return exported or [f"{package}.{node.name}" for node in body if isinstance(node, ast.ClassDef)]


def _source(name: str) -> ast.Module:
    package = CORE / name / "__init__.py"
    return ast.parse((package if package.is_file() else CORE / f"{name}.py").read_text())
