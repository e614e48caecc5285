"""What a plugin looks at before it changes a seam: the parameters it expects there, from the lists of the compat modules."""

import ast

from eagle3_sglang.compat_check import NAMES, SAMPLED

from scripts.site.sources import assigned, plugin

VLLM_LISTS = ("BOTH_RUNNERS", "SAMPLING", "FP8", "TREES")


def sglang() -> dict[str, tuple[str, ...]]:
    """Parameters by dotted name; () where the name alone is looked for."""
    return {f"{name.module}.{name.path}": name.parameters for name in NAMES + SAMPLED}


def vllm() -> dict[str, tuple[str, ...]]:
    """Parameters by qualified name without its module, as `Scheduler.__init__`; read, for compat imports vLLM."""
    compat = plugin("eagle3_vllm/compat.py")
    real = {
        alias.asname or alias.name: alias.name
        for node in compat.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    found = {}
    for name in VLLM_LISTS:
        entries = assigned(compat, name)
        assert isinstance(entries, ast.Tuple)
        for entry in entries.elts:
            assert isinstance(entry, ast.Call)
            root, *rest = ast.unparse(entry.args[1]).split(".")
            # a lower-case root is a module
            path = [*([] if rest and root.islower() else [real.get(root, root)]), *rest]
            found[".".join(path)] = _parameters(compat, entry.args[2])
    return found


def _parameters(compat: ast.Module, node: ast.expr) -> tuple[str, ...]:
    if isinstance(node, ast.Name):
        return _parameters(compat, assigned(compat, node.id))
    if isinstance(node, ast.Call):
        return tuple(ast.literal_eval(node.args[0]).split())
    found: tuple[str, ...] = ast.literal_eval(node)
    return found
