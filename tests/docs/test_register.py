"""The patch register holds what the plugins change, and nothing else. What a registration leaves behind in a real vLLM or
SGLang is compared in `tests/plugins/*/test_*_faults.py`."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from eagle3_sglang.seams import SEAMS as SGLANG
from eagle3_vllm.seams import SEAMS as VLLM
from eagle3_vllm.seams import VALUES as VLLM_VALUES

from eagle3_serving.patches import Seam
from scripts.site import seams, signatures
from scripts.site.sources import ROOT

# what assignments go to that is ours: objects that the plugins make, copies, and a pass's own input
OURS = {
    "self",
    "cls",
    "step",
    "idle",
    "scratch",
    "forward_batch",
    "trees",
    "layer",
    "model",
    "self.model",
    "self.trees",
}
OURS |= {"self.config"}
# attributes that theirs do not have: what an adopted worker or state carries of ours
ADDED = {"calibration", "shapes", "expected_SB", "trees", "hidden_states"}


def changes(folder: Path) -> dict[str, str]:
    """The last name of everything that a plugin sets on what is not its own, and where."""
    found = {}
    for path in sorted(folder.rglob("*.py")):
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            for name in _set_by(node, tree):
                if name not in ADDED:
                    found[name] = f"{path.name}:{node.lineno}"  # type: ignore[attr-defined]
    return found


def _set_by(node: ast.AST, tree: ast.Module) -> Iterator[str]:
    if isinstance(node, ast.Attribute | ast.Subscript) and isinstance(node.ctx, ast.Store | ast.Del):
        owner = ast.unparse(node.value)
        if isinstance(node, ast.Attribute) and owner not in OURS:
            yield node.attr
        elif isinstance(node, ast.Subscript) and owner == "os.environ":
            yield _text(node.slice, tree)
    elif isinstance(node, ast.Call):
        called = ast.unparse(node.func)
        if called == "setattr" or called.endswith("patches.attribute"):
            yield _text(node.args[1], tree)
        elif called.endswith(".setLevel"):
            yield "setLevel"


def _text(node: ast.expr, tree: ast.Module) -> str:
    """A literal, or the constant of this module or of the core that is named."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    name = ast.unparse(node)
    for one in tree.body:
        if isinstance(one, ast.Assign) and ast.unparse(one.targets[0]) == name:
            return str(ast.literal_eval(one.value))
        if isinstance(one, ast.ImportFrom) and any(alias.name == name for alias in one.names):
            module = ROOT / f"{one.module}.py".replace(".", "/").replace("/py", ".py")
            return _text(node, ast.parse(module.read_text()))
    return name


def last_names(register: tuple[Seam, ...]) -> set[str]:
    return {seam.target.replace(":", ".").replace(" ", ".").split(".")[-1] for seam in register}


def test_every_change_of_sglang_is_in_the_register() -> None:
    found = changes(ROOT / "plugins" / "eagle3_sglang")
    hooked = {seam.target for seam in SGLANG if seam.target.startswith("sglang.srt.")}
    assert {"eagle_sample", "_get_attention_backend", "EAGLE3_TREES", "setLevel"} <= found.keys()
    assert not found.keys() - last_names(SGLANG), found
    # and the other way round: what is no hook is a change that stands in the code
    names = last_names(SGLANG) - found.keys()
    assert names == {target.split(".")[-1] for target in hooked} - found.keys()
    assert names == {name.split(".")[-1] for name in hooks_in_the_code()}


def hooks_in_the_code() -> set[str]:
    tree = ast.parse((ROOT / "plugins" / "eagle3_sglang" / "hooks.py").read_text())
    known = {
        ast.unparse(node.targets[0]): node.value.value
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
    }
    [table] = [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "hooks" and isinstance(node.value, ast.Dict)
    ]
    found = {eval(ast.unparse(key), {}, known) for key in table.keys if key is not None}
    assert found <= {seam.target for seam in SGLANG}
    return found


def test_every_value_of_vllm_that_is_set_is_in_the_register() -> None:
    found = changes(ROOT / "plugins" / "eagle3_vllm")
    # `name` is the loop over the model runner's, which the real registration is asked for
    later = found.keys() - last_names(VLLM) - {"name", "FOLDER"}
    assert {"num_speculative_tokens", "dynamic_sd_lookup", "eagle3_rows"} <= later
    assert later == last_names(VLLM_VALUES), found


@pytest.mark.parametrize("seam", [*VLLM, *VLLM_VALUES, *SGLANG], ids=lambda seam: seam.target)
def test_a_seam_is_whole_and_its_test_is_there(seam: Seam) -> None:
    assert (ROOT / seam.held).is_file() and Path(seam.held).name.startswith("test_")
    assert all(text.endswith(".") and len(text) > 15 for text in (seam.what, seam.why, seam.ends)), seam


def test_the_page_shows_the_signature_that_is_looked_at() -> None:
    text = seams.page()
    assert "`Scheduler.make_spec_decoding_stats(self, spec_decoding_stats, num_draft_tokens, " in text
    assert "`init_speculator(vllm_config, device, req_states, ...)`" in text
    assert "`SpeculativeAlgorithm.create_worker(server_args, ...)`" in text
    assert len(signatures.vllm()) > 30 and len(signatures.sglang()) > 20
