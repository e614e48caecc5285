"""The support matrix, from what the tests assert: the `supports` marks of the tests on real engines, read without running
one. What no test is marked with does not stand here as working."""

import ast
import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from scripts.site.sources import ROOT, constant, keys_of, plugin, words

ENGINES = {"vllm": "vLLM", "sglang": "SGLang"}
WAYS = ("tree", "chain in a tree", "chain", "own chain", "plain")
COLUMNS = (("vllm", "tree"), ("vllm", "chain"), ("sglang", "tree"))
HEADS = ("vLLM, trees (Model Runner V2)", "vLLM, chains (runner V1)", "SGLang, trees")
# features that were looked at and cannot run on the machine of the tests: engine, feature, and why
NOT_HERE = (
    (
        "vllm",
        "VLM targets, text-only requests",
        "its vision models import torchvision, which its CPU build leaves out; "
        "trees give way to the chain there, by a line",
    ),
    (
        "vllm",
        "targets of 4-bit weights in fp32",
        "its CPU kernels know bf16 and fp16 alone, in which equality was seen and is not promised",
    ),
    ("vllm", "a tree over LoRA adapters", "on a CPU its Model Runner V2 stops at the first draft, whoever drafts"),
    (
        "sglang",
        "quantised targets (compressed-tensors)",
        "SGLang takes them in bf16 and fp16 alone: `torch.float32 is not supported`",
    ),
    (
        "sglang",
        "LoRA adapters on the target",
        "SGLang ends at start: `pin_memory=True requires a CUDA or other accelerator backend`",
    ),
)
UNPROVEN = '<em class="unproven">unproven</em>'
KNOWN = {"vllm": ("eagle3_vllm/versions.py", "SUPPORTED"), "sglang": ("eagle3_sglang/compat_check.py", "VERSIONS")}
# what a row of the H100's files must hold to be a measured step, and whose settings these are
RUNS = {
    ("vllm", "tree"): ("vllm.jsonl", "tree", "ms_median"),
    ("vllm", "chain"): ("vllm.jsonl", "chain", "ms_median"),
    ("sglang", "tree"): ("sglang.jsonl", "fixed", "tokens_s"),
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


def ran_on_a_gpu(folder: Path = ROOT / "benchmarks" / "results" / "h100") -> set[tuple[str, str]]:
    """The engines and ways of which the H100's rows hold a measured step."""
    return {
        which
        for which, (name, setting, figure) in RUNS.items()
        if (folder / name).is_file()
        and any(
            setting in str(row.get("engine", "")) and row.get(figure)
            for row in map(json.loads, (folder / name).read_text().splitlines())
        )
    }


def page(found: list[Support] | None = None, gpu: set[tuple[str, str]] | None = None) -> str:
    found = marks() if found is None else found
    gpu = ran_on_a_gpu() if gpu is None else gpu
    return "\n".join([_HEAD, *_versions(), *_devices(found, gpu), *_features(found), *_refused(), *_tests(found)])


_HEAD = f"""# Support matrix

Made at each build from the tests, the plugins' own lists and the files of results. A cell says that something works only where a test on the
**real engine** asserts it. All else is {UNPROVEN}: it may work, and nobody here has seen it.
"""


def _versions() -> list[str]:
    lines = ["## Engine versions", "", "| version | private names and signatures | the tests below |", "|---|---|---|"]
    for engine, (module, name) in KNOWN.items():
        pinned = constant(ROOT / "scripts" / "setup_env.py", engine.upper())
        tested = pinned.partition("==")[2]
        for version in constant(ROOT / "plugins" / module, name):
            runs = tested == version or tested.startswith(f"{version}.")
            lines.append(f"| {ENGINES[engine]} {version} | known | {f'run on `{pinned}`' if runs else UNPROVEN} |")
    return [
        *lines,
        "",
        "On any other version, and where a name or signature is not as known, the engine's own EAGLE-3 serves, with a line in its",
        "log: [how a version is added](adding-an-engine-version.md).",
        "",
    ]


def _devices(found: list[Support], gpu: set[tuple[str, str]]) -> list[str]:
    lines = ["## Devices", "", "| | CPU (x86, fp32) | NVIDIA GPU |", "|---|---|---|"]
    for head, (engine, way) in zip(HEADS, COLUMNS, strict=True):
        features = {one.feature for one in found if _cell([one], engine, way) != UNPROVEN}
        on_cpu = f"tested: {len(features)} features" if features else UNPROVEN
        on_gpu = "an earlier form ran once (H100)" if (engine, way) in gpu else UNPROVEN
        lines.append(f"| {head} | {on_cpu} | {on_gpu} |")
    return [
        *lines,
        "",
        "What the H100 said, the bad figures too: [On a GPU](gpu-results.md). The code has changed since and has not run on one;",
        "other devices (AMD, TPU, Ascend, Apple) were never tried.",
        "",
    ]


def _features(found: list[Support]) -> list[str]:
    lines = ["## Features", "", f"| feature | {' | '.join(HEADS)} |", "|---|---|---|---|"]
    for feature in sorted({one.feature for one in found}, key=str.lower):
        said = [one for one in found if one.feature == feature]
        lines.append(f"| {feature} | {' | '.join(_cell(said, *column) for column in COLUMNS)} |")
    return [
        *lines,
        "",
        "**tree**, **chain**: drafted so, and the answers are plain decoding's. **chain in a tree**: on a server of trees such a",
        "request is drafted the likeliest path alone. **own chain**: a line says that the engine's own chain serves instead, with our",
        "drafter. **plain**: served without drafts, the request or, with a line, the server.",
        "",
        "What was looked at and cannot be shown on the CPU that these tests run on:",
        "",
        "| engine | feature | why |",
        "|---|---|---|",
        *(f"| {ENGINES[engine]} | {feature} | {why} |" for engine, feature, why in NOT_HERE),
        "",
    ]


def _cell(said: list[Support], engine: str, way: str) -> str:
    """The best that is asserted; on a server of trees a request may get less than a tree."""
    ways = {one.way for one in said if one.engine == engine}
    if way in ways:
        return way
    less = ("chain in a tree", "own chain", "plain") if way == "tree" else ()
    return next((other for other in less if other in ways), UNPROVEN)


def _refused() -> list[str]:
    """What the plugins leave to the engine's own chain, as their lists say."""
    fallback, backends = plugin("eagle3_vllm/fallback.py"), plugin("eagle3_sglang/backends.py")
    server, request = (keys_of(fallback, name) for name in ("config_reasons", "chain_reason"))
    trees, chains = (sorted(words(backends, name)) for name in ("TREES", "CHAINS"))
    return [
        "## Where trees give way",
        "",
        "**vLLM, a whole server.** vLLM's own chain serves, with our drafter, and a line names the reason: "
        + "; ".join(server)
        + ".",
        "",
        "**vLLM, one request.** It is drafted a chain in its tree, counted by reason in the metrics: "
        + "; ".join(request)
        + ".",
        "",
        f"**SGLang, attention backends.** Trees with {', '.join(trees)}; chains alone with {', '.join(chains)}; any other is unknown, "
        "and SGLang's own EAGLE3 serves.",
        "",
    ]


def _tests(found: list[Support]) -> list[str]:
    lines = ["## Which test says so", "", "| feature | test |", "|---|---|"]
    for feature in sorted({one.feature for one in found}, key=str.lower):
        tests = sorted({one.where.removeprefix("tests/") for one in found if one.feature == feature})
        lines.append(f"| {feature} | {'<br>'.join(f'`{test}`' for test in tests)} |")
    return [*lines, ""]
