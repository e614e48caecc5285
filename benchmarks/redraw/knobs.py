"""What vLLM's plugin can be told, out of the module that reads it."""

import ast

from benchmarks.redraw.catalogue import text
from benchmarks.redraw.raw import ROOT


@text("vllm-settings")
def vllm_settings() -> str:
    """The table in the docstring of its settings; the module is read, not imported."""
    source = (ROOT / "plugins" / "eagle3_vllm" / "settings.py").read_text(encoding="utf-8")
    said = ast.get_docstring(ast.parse(source)) or ""
    return "\n".join(line for line in said.splitlines() if line.startswith("|"))
