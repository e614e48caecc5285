"""The settings of both plugins, from the tables that stand where they are read."""

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def page() -> str:
    parts = ["# Settings of the plugins\n", "All by environment variables of the server's process.\n"]
    for engine, plugin in (("vLLM", "eagle3_vllm"), ("SGLang", "eagle3_sglang")):
        text = ast.get_docstring(ast.parse((ROOT / "plugins" / plugin / "settings.py").read_text())) or ""
        parts += [f"## {engine}\n", text.partition("\n\n")[2] + "\n"]
    return "\n".join(parts)
