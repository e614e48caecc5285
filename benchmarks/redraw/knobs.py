"""What the plugins can be told, out of the modules that read it."""

import ast

from benchmarks.redraw.catalogue import text
from benchmarks.redraw.raw import ROOT


@text("vllm-settings")
def vllm_settings() -> str:
    return _table("eagle3_vllm")


@text("sglang-settings")
def sglang_settings() -> str:
    return _table("eagle3_sglang")


def _table(plugin: str) -> str:
    """The table in the docstring of a plugin's settings; the module is read, not imported."""
    source = (ROOT / "plugins" / plugin / "settings.py").read_text(encoding="utf-8")
    said = ast.get_docstring(ast.parse(source)) or ""
    return "\n".join(line for line in said.splitlines() if line.startswith("|"))
