"""What the pages read out of the project's source, without importing or running it."""

import ast
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def plugin(path: str) -> ast.Module:
    return ast.parse((ROOT / "plugins" / path).read_text())


def assigned(tree: ast.Module, name: str) -> ast.expr:
    """What a module gives `name`. Raises ValueError where it does so not once."""
    [value] = [
        node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and any(isinstance(to, ast.Name) and to.id == name for to in node.targets)
    ]
    return value


def constant(path: Path, name: str) -> Any:
    """`NAME = <literal>` of a file."""
    return ast.literal_eval(assigned(ast.parse(path.read_text()), name))


def words(tree: ast.Module, name: str) -> set[str]:
    """Those of `NAME = frozenset({...})`."""
    call = assigned(tree, name)
    assert isinstance(call, ast.Call)
    found: set[str] = ast.literal_eval(call.args[0])
    return found


def keys_of(tree: ast.Module, function: str) -> list[str]:
    """The keys of the dictionaries in a function (or in the private one behind it), as words; of one that is put together its
    fixed part. Raises ValueError where there are none."""
    bodies = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.lstrip("_") == function]
    keys = [key for body in bodies for node in ast.walk(body) if isinstance(node, ast.Dict) for key in node.keys]
    plain = [key.value for key in keys if isinstance(key, ast.Constant) and isinstance(key.value, str)]
    joined = [str(key.values[0].value).strip() for key in keys if isinstance(key, ast.JoinedStr)]  # type: ignore[attr-defined]
    if not plain:
        raise ValueError(f"{function} holds no dictionary of reasons")
    return [text.replace("_", " ") for text in plain] + [f"{text} other than the standard one" for text in joined]
