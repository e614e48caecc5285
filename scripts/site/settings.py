"""The settings of both plugins, from the tables that stand where they are read."""

import ast

from scripts.site.sources import plugin


def page() -> str:
    parts = ["# Settings of the plugins\n", "All by environment variables of the server's process.\n"]
    for engine, package in (("vLLM", "eagle3_vllm"), ("SGLang", "eagle3_sglang")):
        text = ast.get_docstring(plugin(f"{package}/settings.py")) or ""
        parts += [f"## {engine}\n", text.partition("\n\n")[2] + "\n"]
    return "\n".join(parts)
