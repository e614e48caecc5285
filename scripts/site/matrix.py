"""The support matrix, from what the tests assert: the `supports` marks of the tests on real engines, read without running
one. What no test is marked with does not stand here as working."""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
ENGINES = {"vllm": "vLLM", "sglang": "SGLang"}
WAYS = ("tree", "chain in a tree", "chain", "plain")
LISTS = {
    "vllm": ROOT / "plugins" / "eagle3_vllm" / "fallback.py",
    "sglang": ROOT / "plugins" / "eagle3_sglang" / "backends.py",
}


class Support(NamedTuple):
    """One mark: `engine` serves `feature` by `way` (trees, chains, or plain decoding), as the test `where` asserts."""

    engine: str
    way: str
    feature: str
    where: str


def marks(folder: Path = ROOT / "tests") -> list[Support]:
    """Every `@pytest.mark.supports(engine, way, *features)` below `folder`. Raises ValueError for words that are unknown."""
    found = []
    for path in sorted(folder.rglob("test_*.py")):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef):
                for engine, way, *features in _marks_of(node):
                    where = f"{path.relative_to(folder.parent)}::{node.name}"
                    if engine not in ENGINES or way not in WAYS or not features:
                        raise ValueError(f"{where}: supports({engine!r}, {way!r}, ...) is unknown, or names no feature")
                    found += [Support(engine, way, feature, where) for feature in features]
    return found


def _marks_of(function: ast.FunctionDef) -> Iterator[list[str]]:
    for decorator in function.decorator_list:
        if isinstance(decorator, ast.Call) and ast.unparse(decorator.func) == "pytest.mark.supports":
            yield [ast.literal_eval(argument) for argument in decorator.args]


def page(found: list[Support] | None = None) -> str:
    found = marks() if found is None else found
    return "\n".join(
        [_HEAD, *_versions(), *_features(found), *_refused(), _TAIL.format(tests=len({s.where for s in found}))]
    )


_HEAD = """# Support matrix

Made at each build from the tests and the plugins' own lists: a cell is filled only where a test on the **real engine**
(fp32, two CPU cores, the real small target) asserts it. An empty cell is **unproven**: it may work, and nobody here has seen it.

## Engine versions
"""

_TAIL = """## Devices

Everything above is asserted on a CPU, {tests} tests in all. On a GPU (one H100, once, before trees stood in CUDA graphs) the trees in stock vLLM 0.32
and a fixed tree in SGLang 0.5.20 were served and right; [that page](gpu-results.md) says how fast. All else on a GPU is unproven.
"""


def _versions() -> list[str]:
    lines = ["| engine | versions whose private names are known | what the tests run |", "|---|---|---|"]
    setup = (ROOT / "scripts" / "setup_env.py").read_text()
    for engine, module, name in (
        ("vllm", "eagle3_vllm/versions.py", "SUPPORTED"),
        ("sglang", "eagle3_sglang/compat_check.py", "VERSIONS"),
    ):
        known = ", ".join(_constant(ROOT / "plugins" / module, name))
        [pinned] = [node for node in ast.parse(setup).body if _assigns(node, engine.upper())]
        lines.append(f"| {ENGINES[engine]} | {known} | `{ast.literal_eval(pinned.value)}` |")  # type: ignore[attr-defined]
    return [*lines, "", "Any other version is served by the engine's own EAGLE-3, with a line in its log.", ""]


def _features(found: list[Support]) -> list[str]:
    columns = [("vllm", "tree"), ("vllm", "chain"), ("sglang", "tree")]
    heads = ["vLLM, trees (Model Runner V2)", "vLLM, chains (runner V1)", "SGLang, trees"]
    lines = ["## Features", "", f"| feature | {' | '.join(heads)} |", "|---|---|---|---|"]
    for feature in sorted({support.feature for support in found}):
        cells = [
            _cell([s for s in found if s.feature == feature and s.engine == engine], way) for engine, way in columns
        ]
        lines.append(f"| {feature} | {' | '.join(cells)} |")
    notes = [
        "",
        "**tree**, **chain**: drafted so, and the answers are plain decoding's. **chain in a tree**: on a server of trees such a",
        "request is drafted the likeliest path alone. **plain**: such a request is served without drafts.",
        "",
    ]
    return [*lines, *notes]


def _cell(said: list[Support], way: str) -> str:
    """The best that is asserted; on a server of trees a request may get less than a tree."""
    ways = {support.way for support in said}
    if way in ways:
        return way
    less = ("chain in a tree", "plain") if way == "tree" else ()
    return next((other for other in less if other in ways), "")


def _refused() -> list[str]:
    """What the plugins leave to the engine's own chain, as their lists say."""
    vllm, sglang = (ast.parse(path.read_text()) for path in LISTS.values())
    server, request = (_keys(vllm, name) for name in ("config_reasons", "chain_reason"))
    trees, chains = (sorted(_names(sglang, name)) for name in ("TREES", "CHAINS"))
    return [
        "## Where trees give way",
        "",
        "**vLLM**, a whole server: vLLM's own chain serves, with our drafter and a line that names the reason. "
        + "; ".join(server)
        + ".",
        "",
        f"**vLLM**, one request: it is drafted a chain in its tree (counted by reason in the metrics). {'; '.join(request)}.",
        "",
        f"**SGLang**, attention backends: trees with {', '.join(trees)}; chains alone with {', '.join(chains)}; any other is unknown, "
        "and SGLang's own EAGLE3 serves.",
        "",
    ]


def _keys(tree: ast.Module, function: str) -> list[str]:
    [found] = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == function]
    keys = [key for node in ast.walk(found) if isinstance(node, ast.Dict) for key in node.keys]
    plain = [key.value for key in keys if isinstance(key, ast.Constant) and isinstance(key.value, str)]
    joined = [key.values[0].value.strip() for key in keys if isinstance(key, ast.JoinedStr)]  # type: ignore[attr-defined]
    return [text.replace("_", " ") for text in plain] + [f"{text} other than the standard one" for text in joined]


def _assigns(node: ast.stmt, name: str) -> bool:
    return isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == name for t in node.targets)


def _constant(path: Path, name: str) -> tuple[str, ...]:
    [node] = [node for node in ast.parse(path.read_text()).body if _assigns(node, name)]
    value: tuple[str, ...] = ast.literal_eval(node.value)  # type: ignore[attr-defined]
    return value


def _names(tree: ast.Module, name: str) -> set[str]:
    """The words of `NAME = frozenset({...})`."""
    [node] = [node for node in tree.body if _assigns(node, name)]
    value: set[str] = ast.literal_eval(node.value.args[0])  # type: ignore[attr-defined]
    return value
